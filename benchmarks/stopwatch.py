"""Does images_per_second agree with an outside stopwatch around a plain loop?

    python benchmarks/stopwatch.py [--device cpu] [--recipe blog] [--batch-size 16] [--model resnet18]
                                                (a minute on two cores)

Visits and plain loops of the same step on the same input path take turns; on a GPU both wait for it only at the end.
Target: within 2 %, or the interval holds 1.
"""

import sys
import time

from common import agrees, arguments, axes_of, cell, measure, workbenches

from rresnet.training.timing import synchronize
from rresnet.training.workbench import Workbench


def plain(bench: Workbench, seconds: float) -> float:
    """Images a second of a loop with nothing but a stopwatch around it."""
    bench.train_step(*next(bench.batches))  # the re-warming step, as in a visit
    steps, count = max(1, round(seconds / (bench.step_seconds or seconds))), 0
    synchronize(bench.device)
    start = time.perf_counter()
    for _ in range(steps):
        raw = next(bench.batches)
        bench.train_step(*raw)
        count += len(raw[0])
    synchronize(bench.device)
    return count / (time.perf_counter() - start)


def main() -> int:
    options = arguments(__doc__, repeats=24, seconds=1.0, device="cpu", recipe="blog", batch_size=16, model="resnet18")
    axes = axes_of(options.recipe, options.device)
    (bench,) = workbenches([cell(**axes, batch_size=options.batch_size, model=options.model)])
    ratios = []
    for repeat in range(options.repeats):
        if repeat % 2:
            outside, ours = plain(bench, options.seconds), measure(bench, options.seconds)
        else:
            ours, outside = measure(bench, options.seconds), plain(bench, options.seconds)
        ratios.append((ours.images_per_second or 0.0) / outside)
    return agrees(f"{bench.cell.label()}: reported over outside images/s", ratios, within=0.02)


if __name__ == "__main__":
    sys.exit(main())
