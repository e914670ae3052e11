"""What do environment variables of the allocator, or of other libraries, change? Two processes that take turns.

    python benchmarks/variables.py [--set GLIBC_TUNABLES=glibc.malloc.hugetlb=1] [--recipe tuned] [--batches 64,256]

One process has the variables, the other does not; both keep their cells hot, and train in turns, in shuffled order.
Prints the ratio of images/s with the variables to those without, for each batch size, as a mean over the repeats with
its interval. (About 4 minutes on two cores.)
"""

import os
import random
import subprocess
import sys
from collections import defaultdict
from statistics import median

from common import arguments, cell, measure, workbenches

from rresnet import grid, hardware
from rresnet.analysis.statistics import in_order, log_mean_interval

SECONDS, SETTLING_SECONDS = 2.0, 0.7  # measured in a turn; before that, for caches that the other has used
NAMES = ("without", "with")


def train(recipe: str) -> None:
    """What a process does: train with the batch size on each line of its input, and say how many images a second."""
    axes, hot = grid.recipe(recipe)("cpu", hardware.probe()), {}
    for line in sys.stdin:
        size = int(line)
        if size not in hot:
            (hot[size],) = workbenches([cell(model="resnet50", recipe=recipe, batch_size=size, **vars(axes))])
        measure(hot[size], SETTLING_SECONDS)
        print(measure(hot[size], SECONDS).images_per_second, flush=True)


def started(recipe: str, variables: dict[str, str]) -> subprocess.Popen[str]:
    """Such a process."""
    command = [sys.executable, __file__, "--recipe", recipe, "--child", "yes"]
    environment = {**os.environ, **variables}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def rate(process: subprocess.Popen[str], size: int) -> float:
    """Images a second of one turn."""
    assert process.stdin is not None
    assert process.stdout is not None
    print(size, file=process.stdin, flush=True)
    told = process.stdout.readline()
    if not told:
        raise SystemExit(f"the process with batches of {size} has ended: its error stands above")
    return float(told)


def main() -> int:
    """Compare, or be one of the processes."""
    options = arguments(
        __doc__,
        set="GLIBC_TUNABLES=glibc.malloc.hugetlb=1",
        recipe="tuned",
        batches="64,256",
        repeats=9,
        child="",
    )
    if options.child:
        train(options.recipe)
        return 0
    if options.repeats < 4:
        raise SystemExit("--repeats must be at least 4: the first turn builds the cell, and an interval takes 3 pairs")
    variables = dict(one.split("=", 1) for one in options.set.split())
    both = {"without": started(options.recipe, {}), "with": started(options.recipe, variables)}
    rates = defaultdict[tuple[int, str], list[float]](list)
    sizes = [int(size) for size in options.batches.split(",")]
    for repeat in range(options.repeats):
        for size in sizes:
            for name in random.Random(f"{repeat}/{size}").sample(NAMES, k=2):
                rates[size, name].append(rate(both[name], size))
    for process in both.values():
        process.communicate()
    for size in sizes:
        without, found = (rates[size, name][1:] for name in NAMES)  # the first turn of each built the cell
        ratios = [b / a for a, b in zip(without, found, strict=True)]
        interval = log_mean_interval(in_order(ratios))
        print(
            f"{options.recipe} batch {size}: {median(without):.0f} images/s without, {median(found):.0f} with; "
            f"{interval.estimate:.3f} ({interval.low:.3f} - {interval.high:.3f}) times as many, {len(ratios)} pairs"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
