#!/usr/bin/env python
"""How much do more workers bring? Strong and weak scaling.

Each worker of Ray Train has a GPU, or its share of the machine's cores. Prints speedup and efficiency with intervals,
what share of a step exchanging gradients takes, and what a simple model predicts for up to 1,024 workers, marked as
such. A worker group takes 10 s or more to start, so a run takes minutes.

Examples:
  python experiments/scaling.py
  python experiments/scaling.py --device gpu --batch-size 256 --scaling weak
  python experiments/scaling.py --address auto --num-workers 1 4 --num-nodes 2
  python experiments/scaling.py --dry-run  what would run
"""

import sys

from rresnet.cli import main
from rresnet.experiments import scaling

if __name__ == "__main__":
    defaults = scaling.ScalingSettings()
    sys.exit(main("scaling", __doc__ or "", defaults=defaults, cells=scaling.cells, show=scaling.show))
