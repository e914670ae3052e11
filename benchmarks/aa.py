"""A/A: identical cells against each other, whose true ratio is 1. How often does the interval hold it?

    python benchmarks/aa.py             (about 8 minutes on two cores)
    python benchmarks/aa.py --load 1    with a process that keeps a core busy, coming and going every 4 s

Each comparison is a run of a cell and its copy, 12 repeats of 0.3 s. Targets: 95 % of the 95 % intervals hold 1 (under
load 90 %), and the rows under load are flagged.
"""

import sys

from common import arguments, busy_process, cell, run, verdict, workbenches

import rresnet
from rresnet.quality.flags import LOAD_FLAGS


def main() -> int:
    """Measure and judge."""
    options = arguments(__doc__, comparisons=40, repeats=12, seconds=0.3, load=0)
    benches = workbenches([cell(copy=0), cell(copy=1)])
    held = loaded = rows = 0
    load = busy_process(on_seconds=4.0, off_seconds=4.0) if options.load else None
    try:
        for number in range(options.comparisons):
            trials = run(benches, repeats=options.repeats, seconds=options.seconds, name=f"run{number}")
            row = rresnet.speedup(trials, over="copy", reference=0).iloc[0]
            held += row["low"] <= 1 <= row["high"]
            loaded += sum(bool(LOAD_FLAGS & set(flags)) for flags in trials["quality_flags"])
            rows += len(trials)
            print(f"{number + 1}: ratio {row['speedup']:.4f} ({row['low']:.4f} - {row['high']:.4f})", flush=True)
    finally:
        if load:
            load.kill()
    share, target = held / options.comparisons, 0.9 if load else 0.95
    told = (
        f"the interval held 1 in {held} of {options.comparisons} comparisons; {loaded} of {rows} rows flagged for load"
    )
    return verdict(told, share >= target)


if __name__ == "__main__":
    sys.exit(main())
