"""`python -m rresnet`: the command `rresnet`, where its script is not on the PATH."""

import sys

from rresnet.command import main

sys.exit(main())
