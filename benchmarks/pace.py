"""Does the interval hold where repeats follow one another fast, and where a run goes on until it is tight?

    python benchmarks/pace.py [--draws 2000] [--seed 42]          (about half a minute on one core)

The machine drifts with time, not with repeats. `coverage.py` simulates unlike cells whose repeats follow one another as
the rounds of the traces do, every `ROUND_SECONDS`; here several repeats fit into a round, four to a process. Prints
coverage in % and mean half-width in % of the interval that knows how many rounds its repeats are, beside one that takes
each repeat for a round. Then runs that go on, four repeats in one process at a time, until their intervals are as tight
as a target (`--target-interval`) or 600 repeats are done: their coverage and median length. Exits with 1 if coverage of
the interval that knows its rounds falls below 88 %.
"""

import sys
from collections.abc import Callable
from functools import partial

import numpy as np
from candidates import Array
from common import arguments
from coverage import PROCESS_SD, Fitted, forgetful, read_pairs, scenarios, t_noise, table
from rich.console import Console

from rresnet.analysis.statistics import half_width

OF_A_PROCESS, MOST, TARGET = 4, 600, 88.0
Half = Callable[[Array, int], Array]  # runs and how many processes made them -> half-widths


def runs(unlike: Fitted, rng: np.random.Generator, draws: int, repeats: int, pace: int) -> Array:
    """Log ratios of unlike cells, `pace` repeats in each round; the true ratio is 1."""
    tau, noise, drift = unlike.fits[rng.integers(len(unlike.fits), size=draws)].T
    processes = np.repeat(rng.standard_normal((draws, repeats // OF_A_PROCESS)), OF_A_PROCESS, axis=1)
    apart = drift[:, None] * forgetful(rng, draws, repeats, tau * pace)
    return np.asarray(apart + noise[:, None] * (t_noise(rng, draws, repeats, 5) + PROCESS_SD * processes))


def known(x: Array, processes: int, *, pace: int) -> Array:
    return half_width(x, processes, rounds=x.shape[-1] / pace)


def planned(x: Array, half: Half) -> tuple[float, str]:
    """Coverage of runs of a fixed length, and what is printed of it."""
    width = half(x, x.shape[1] // OF_A_PROCESS)
    held = 100 * float(np.mean(np.abs(x.mean(axis=1)) <= width))
    return held, f"{held:.1f} ±{100 * width.mean():.1f}"


def until(x: Array, half: Half, target: float) -> tuple[float, str]:
    """The same of runs that go on until the interval reaches at most `target` above; with their median length."""
    held, length = np.zeros(len(x), bool), np.zeros(len(x), int)
    for count in range(3 * OF_A_PROCESS, x.shape[1] + 1, OF_A_PROCESS):
        width = half(x[:, :count], count // OF_A_PROCESS)
        ends = (length == 0) & ((np.expm1(width) <= target) | (count == x.shape[1]))
        held[ends], length[ends] = np.abs(x[ends, :count].mean(axis=1)) <= width[ends], count
    return 100 * float(held.mean()), f"{100 * held.mean():.1f}, {np.median(length):.0f} repeats"


def main() -> int:
    options = arguments(__doc__, draws=2000, seed=42)
    unlike = scenarios(read_pairs())["unlike"]
    assert isinstance(unlike, Fitted)
    rng, lowest = np.random.default_rng(options.seed), 100.0
    rows: dict[str, list[str]] = {}
    kinds: dict[str, Callable[[Array, Half], tuple[float, str]]] = {
        **{f"{count} repeats": planned for count in (12, 48, 200)},
        **{f"until ±{100 * target:.0f} %": partial(until, target=target) for target in (0.1, 0.05)},
    }
    for pace in (1, 2, 4, 8):
        for name, judge in kinds.items():
            x = runs(unlike, rng, options.draws, int(name.split()[0]) if judge is planned else MOST, pace)
            coverage, told = judge(x, partial(known, pace=pace))
            lowest = min(lowest, coverage)
            rows.setdefault(f"{pace} in a round", []).append(told)
            rows.setdefault(f"{pace}, each taken for one", []).append(judge(x, half_width)[1])
    Console(width=160, highlight=False).print(
        table("Simulated unlike cells: coverage, mean half-width or median length", ["repeats", *kinds], rows)
    )
    print(f"lowest coverage where rounds are known: {lowest:.1f} %; the target is {TARGET:.0f} %")
    return int(lowest < TARGET)


if __name__ == "__main__":
    sys.exit(main())
