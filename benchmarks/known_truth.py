"""Is a slowdown of known size found again? Identical cells, some with extra work in their step.

    python benchmarks/known_truth.py                 (about 35 minutes on two cores)

The extra work is whole steps: for 10 %, every tenth step comes with another one, with a batch of its own, that is not
counted. So the cell truly takes 1.10 times as long, whatever the machine does meanwhile. The cells are built anew 8
times in a run. Targets: the interval holds the truth in at least 9 of 10 runs, and 10 % and 30 % are called
distinguishable in at least 9 of 10.
"""

import sys

import pandas as pd
from common import Slowed, arguments, cell, run, verdict, workbenches

import rresnet
from rresnet.training.workbench import Workbench

SLOWDOWNS = (0.05, 0.1, 0.3)
CELL = {"model": "shufflenet_v2_x0_5", "batch_size": 64}  # steps of 40 ms: a visit averages a dozen


def build() -> list[Workbench]:
    benches = workbenches([cell(**CELL, copy=copy) for copy in range(len(SLOWDOWNS) + 1)])
    for bench, slowdown in zip(benches[1:], SLOWDOWNS, strict=True):
        bench.train_step = Slowed(bench, slowdown)
    return benches


def main() -> int:
    options = arguments(__doc__, runs=10, repeats=48, seconds=0.5, builds=8)
    held = dict.fromkeys(SLOWDOWNS, 0)
    told = dict.fromkeys(SLOWDOWNS, 0)
    each = options.repeats // options.builds
    for number in range(options.runs):
        parts = [
            run(build(), repeats=each, seconds=options.seconds, name=f"run{number}", first=part * each, process=part)
            for part in range(options.builds)
        ]
        trials = pd.concat(parts)
        for row in rresnet.speedup(trials, over="copy", reference=0).to_dict("records"):
            slowdown = SLOWDOWNS[row["copy"] - 1]
            truth = 1 / (1 + slowdown)
            held[slowdown] += row["low"] <= truth <= row["high"]
            told[slowdown] += row["distinguishable"]
            print(
                f"run {number + 1}: {slowdown:.0%} slower is {truth:.3f}; found {row['speedup']:.3f} "
                f"({row['low']:.3f} - {row['high']:.3f}), {row['distinguishable']}",
                flush=True,
            )
    least = 0.9 * options.runs
    missed = 0
    for slowdown in SLOWDOWNS:
        what = f"{slowdown:.0%}: the interval held the truth in {held[slowdown]} of {options.runs} runs, "
        what += f"distinguishable in {told[slowdown]}"
        missed |= verdict(what, held[slowdown] >= least and (slowdown < 0.1 or told[slowdown] >= least))
    return missed


if __name__ == "__main__":
    sys.exit(main())
