"""Does a cell measure the same alone in its process as among five hot ones?

    python benchmarks/company.py                (about 2 minutes on two cores)

Two processes hold the same cell: one alone, the other with four more cells, which it visits in between. They are asked
in turns, and each has trained for the same time right before.
Targets: not distinguishable, and the same peak_memory_bytes within 5 %.
"""

import multiprocessing
import sys
from multiprocessing.connection import Connection

from common import arguments, cell, measure, verdict, workbenches

from rresnet.analysis.statistics import in_order, log_mean_interval

COMPANY = 4


def serve(pipe: Connection, company: int, seconds: float) -> None:
    """Visit the cell, after its company, each time the pipe asks."""
    others = [cell(batch_size=8 * (1 + number), recipe="blog") for number in range(company)]
    benches = workbenches([*others, cell()])
    before = benches[:-1] or [benches[-1]] * COMPANY  # a process that slept a while is slower at first
    pipe.send(None)
    while pipe.recv():
        for bench in before:
            measure(bench, 0.1)
        found = measure(benches[-1], seconds)
        pipe.send((found.images_per_second, found.peak_memory_bytes))


def main() -> int:
    options = arguments(__doc__, repeats=12, seconds=0.5)
    pipes, processes = [], []
    spawn = multiprocessing.get_context("spawn")
    for company in (COMPANY, 0):
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=serve, args=(theirs, company, options.seconds), daemon=True)
        process.start()
        ours.recv()
        pipes.append(ours)
        processes.append(process)
    ratios, memory = [], []
    for repeat in range(options.repeats):
        found = {}
        for which in (0, 1) if repeat % 2 else (1, 0):
            pipes[which].send(True)
            found[which] = pipes[which].recv()
        ratios.append(found[0][0] / found[1][0])
        memory.append(found[0][1] / found[1][1])
    for pipe in pipes:
        pipe.send(False)
    interval = log_mean_interval(in_order(ratios))
    assert interval.low is not None
    assert interval.high is not None
    told = f"in company over alone: {interval.estimate:.3f} ({interval.low:.3f} - {interval.high:.3f}) images/s"
    missed = verdict(told, interval.low <= 1 <= interval.high)
    return missed | verdict(f"peak_memory_bytes {max(memory):.3f}", all(abs(ratio - 1) <= 0.05 for ratio in memory))


if __name__ == "__main__":
    sys.exit(main())
