#!/usr/bin/env python
"""The blog's experiment done again: ten epochs at batch 64, on each device.

The recipes blog and tuned side by side: measured whole on a GPU, projected from a few seconds on a CPU unless --full is
given. Keeps the loss of every hundredth step (results/losses) and the trained model's state_dict (results/files).

Examples:
  python experiments/blog.py
  python experiments/blog.py --dataset cifar10 --data-dir ~/data
  python experiments/blog.py --full --repeats 1  the CPU's ten epochs too
  python experiments/blog.py --address auto      on a Ray cluster
"""

import sys

from rresnet.cli import main
from rresnet.experiments import blog

if __name__ == "__main__":
    sys.exit(main("blog", __doc__ or "", defaults=blog.BlogSettings(), cells=blog.cells, show=blog.show))
