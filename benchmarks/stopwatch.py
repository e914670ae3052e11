"""Does images_per_second agree with an outside stopwatch around a plain loop?

    python benchmarks/stopwatch.py              (a minute on two cores)

Visits and plain loops of the same step on the same input path take turns. Target: within 2 %, or the interval holds 1.
"""

import sys
import time

from common import arguments, cell, measure, verdict, workbenches

from rresnet.statistics import log_mean_interval
from rresnet.workbench import Workbench


def plain(bench: Workbench, seconds: float) -> float:
    """Images a second of a loop with nothing but a stopwatch around it."""
    images, labels = next(bench.batches)
    bench.train_step(images, labels)  # the re-warming step, as in a visit
    steps, count = max(1, round(seconds / (bench.step_seconds or seconds))), 0
    start = time.perf_counter()
    for _ in range(steps):
        images, labels = next(bench.batches)
        bench.train_step(images, labels)
        count += len(labels)
    return count / (time.perf_counter() - start)


def main() -> int:
    options = arguments(__doc__, repeats=24, seconds=1.0)
    (bench,) = workbenches([cell(input="dataloader", recipe="blog")])
    ratios = []
    for repeat in range(options.repeats):
        if repeat % 2:
            outside, ours = plain(bench, options.seconds), measure(bench, options.seconds)["images_per_second"]
        else:
            ours, outside = measure(bench, options.seconds)["images_per_second"], plain(bench, options.seconds)
        ratios.append(float(ours) / outside)  # type: ignore[arg-type]
    found = log_mean_interval(ratios, range(len(ratios)), [0] * len(ratios), drift_limit=0.0)
    assert found.low is not None
    assert found.high is not None
    told = f"reported over outside images/s: {found.estimate:.4f} ({found.low:.4f} - {found.high:.4f})"
    return verdict(told, abs(found.estimate - 1) <= 0.02 or found.low <= 1 <= found.high)


if __name__ == "__main__":
    sys.exit(main())
