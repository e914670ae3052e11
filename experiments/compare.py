#!/usr/bin/env python
"""Which settings train ResNet-50 fastest here, and how sure is that?

Measures devices x recipes x batch sizes in short repeats that take turns, and ends with a table of images per second,
speedups with intervals, and one sentence. Rows go to results/trials, to be read with pandas.

Examples:
  python experiments/compare.py
  python experiments/compare.py --batch-size 64 256 --repeats 24
  python experiments/compare.py --precision fp32 bf16         another axis
  python experiments/compare.py --dataset cifar10 --epochs 2  whole epochs
  python experiments/compare.py --address auto                on a Ray cluster
  python experiments/compare.py --dry-run                     what would run
"""

import sys

from rresnet.cli import main

if __name__ == "__main__":
    sys.exit(main("compare", __doc__ or ""))
