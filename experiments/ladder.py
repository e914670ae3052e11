#!/usr/bin/env python
"""What is the speedup made of? From blog to tuned, one change at a time.

Each rung changes one more thing to what the tuned recipe has; all rungs take turns in short repeats. Prints each
change's paired ratio with its interval, and the total, and draws a waterfall in results/figures.

Examples:
  python experiments/ladder.py
  python experiments/ladder.py --batch-size 64 256 --repeats 24
  python experiments/ladder.py --device gpu --address auto  on a Ray cluster
  python experiments/ladder.py --dry-run                    its rungs
"""

import sys

from rresnet.cli import main
from rresnet.config import Settings
from rresnet.experiments import ladder

if __name__ == "__main__":
    sys.exit(
        main(
            "ladder",
            __doc__ or "",
            defaults=Settings(batch_size=(64,)),
            cells=ladder.cells,
            show=ladder.show,
            decided=ladder.DECIDED,
        )
    )
