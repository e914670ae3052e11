"""Does the runner stay as cheap with 10,000 trials as with 100? Trials that don't train, through Tune, store, analysis.

    python benchmarks/scale.py [--most 10000]          (about 5 minutes on two cores)

Each size is a run of `stub_run.py`: 100 cells in as many repeats as it takes. Prints seconds a trial, from the command
to its end, the driver's peak memory, and what reading and comparing the rows costs.
Targets: 15 ms a trial at most, `rresnet.read` within 0.3 s and `rresnet.speedup` within 1 s for 10,000 trials.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import arguments, verdict

import rresnet

CELLS = 100
STUB = Path(__file__).with_name("stub_run.py")


def run(results: Path, repeats: int) -> tuple[float, float]:
    """Seconds and the driver's peak memory, bytes, of one run."""
    flags = ["--repeats", str(repeats), "--processes", "1", "--seconds", "0.0001", "--results-dir", str(results)]
    began = time.perf_counter()
    environment = {**os.environ, "STUB_CELLS": str(CELLS)}
    process = subprocess.Popen([sys.executable, str(STUB), *flags], env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, status
    return time.perf_counter() - began, usage.ru_maxrss * 1024.0


def fastest(call: object, times: int = 5) -> float:
    """Seconds of the fastest of a few calls."""
    assert callable(call)
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def main() -> int:
    options = arguments(__doc__, most=10_000)
    missed = 0
    with tempfile.TemporaryDirectory() as place:
        before, fewer, trials = 0.0, 0, CELLS
        while trials <= options.most:
            results = Path(place) / str(trials)
            seconds, memory = run(results, trials // CELLS)
            each, more = seconds / trials, (seconds - before) / (trials - fewer)
            told = f"{trials} trials: {seconds:.1f} s, {1000 * each:.1f} ms each with start and end"
            told += f", {1000 * more:.1f} ms each one more than the row above" if fewer else ""
            print(f"{told}; driver's peak memory {memory / 2**20:.0f} MiB", flush=True)
            before, fewer, trials = seconds, trials, trials * 10
        missed |= verdict(f"{1000 * each:.1f} ms a trial, end to end", each <= 0.015)
        rows = rresnet.read(results).trials
        reading = fastest(lambda: rresnet.read(results))
        comparing = fastest(lambda: rresnet.speedup(rows, over="batch_size", reference=1))
    missed |= verdict(f"reading {len(rows)} trials: {reading:.2f} s", reading <= 0.3)
    return missed | verdict(f"speedups of {len(rows)} trials, with intervals: {comparing:.2f} s", comparing <= 1.0)


if __name__ == "__main__":
    sys.exit(main())
