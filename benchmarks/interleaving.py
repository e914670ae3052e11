"""What is interleaving worth? The same measuring time in blocks, and in fine turns.

    python benchmarks/interleaving.py           (about 4 minutes on two cores)

A cell and its identical copy, whose ratio is 1: in blocks, all visits of one and then all of the other; in turns, one
visit each. Printed: how far from 1 the ratios of several runs came out, and the widths of their intervals.
"""

import math
import sys

import pandas as pd
from common import COLUMNS, arguments, cell, row, run, workbenches

import rresnet
from rresnet.training.workbench import Workbench


def blocks(benches: list[Workbench], repeats: int, seconds: float) -> pd.DataFrame:
    rows = [row(bench, seconds, run_id="r", repeat=repeat) for bench in benches for repeat in range(repeats)]
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


def main() -> int:
    options = arguments(__doc__, runs=8, repeats=12, seconds=0.5)
    benches = workbenches([cell(copy=0), cell(copy=1)])
    found: dict[str, list[tuple[float, float]]] = {"in blocks": [], "in turns": []}
    for number in range(options.runs):
        for plan, trials in (
            ("in blocks", blocks(benches, options.repeats, options.seconds)),
            ("in turns", run(benches, repeats=options.repeats, seconds=options.seconds, name=f"run{number}")),
        ):
            ratio = rresnet.speedup(trials, over="copy", reference=0).iloc[0]
            found[plan].append((math.log(ratio["speedup"]), math.log(ratio["high"] / ratio["low"]) / 2))
    for plan, runs in found.items():
        scatter = math.sqrt(sum(log**2 for log, _ in runs) / len(runs))
        width = sum(half for _, half in runs) / len(runs)
        held = sum(abs(log) <= half for log, half in runs)
        print(f"{plan}: ratios scatter by {scatter:.1%} about 1, intervals ±{width:.1%}, {held} of {len(runs)} hold 1")
    return 0


if __name__ == "__main__":
    sys.exit(main())
