"""Run the `rresnet` command as `python -m rresnet`, for when its script is not on the PATH."""

import sys

from rresnet.command import main

sys.exit(main())
