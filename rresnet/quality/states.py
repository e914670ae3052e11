"""Whether the machine changed during a run, as told by the canary."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

CANARIES = ("canary_copy_seconds", "canary_matrix_seconds")

# Two groups of repeats are two states of the machine if their canaries lie farther apart than this difference in log
# units, and than a number of sds within the groups (`change_per_sd`).
CHANGE = 0.1
Repeat = tuple[str, str, int]  # run, machine, repeat
FEWEST_REPEATS = 2  # a change lasts; a single odd repeat is noise


def slow_repeats(trials: pd.DataFrame) -> set[Repeat]:
    """The repeats (run, machine, repeat) whose canary was slow, where it tells two states apart."""
    return {one for slow, _ in _states(trials) for one in slow}


def _states(trials: pd.DataFrame) -> Iterator[tuple[set[Repeat], set[Repeat]]]:
    """For each run, machine, device and canary that tells two states apart, the slow repeats and the others."""
    for canary in CANARIES:
        seen = trials.dropna(subset=[canary])
        for (run_id, hostname, _), rows in seen.groupby(["run_id", "hostname", "device"]):
            times = np.log(rows.groupby("repeat")[canary].median())
            upper, gap, sds = two_groups(times.to_numpy())
            if gap > CHANGE and sds > change_per_sd(len(times)):
                slow, others = (
                    {(str(run_id), str(hostname), int(repeat)) for repeat in times.index[of]} for of in (upper, ~upper)
                )
                yield slow, others


def change_per_sd(count: int) -> float:
    """How many within-group sds two groups of `count` repeats in all must lie apart to be two states of the machine.

    The fewer repeats, the more sds: if one state with normal noise is cut where the scatter within is least, the groups
    lie 11.7 sds apart in 1 of 100 runs of 5 repeats, 5.5 in 1 of 100 runs of 12, and less in longer ones
    (`benchmarks/states.py`).
    """
    return max(6.0, 3 + 30 / (count - 2))


def two_groups(values: NDArray[np.float64]) -> tuple[NDArray[np.bool_], float, float]:
    """Which values lie in the upper of two groups; how far apart the groups lie, as a difference and in sds within.

    The groups have the least squared scatter within (Fisher 1958; exact two-means on a line), with at least
    `FEWEST_REPEATS` values each; too few values are one group.
    """
    ordered = np.sort(values)
    found: list[tuple[float, float, float]] = []
    for cut in range(FEWEST_REPEATS, len(ordered) - FEWEST_REPEATS + 1):
        low, high = ordered[:cut], ordered[cut:]
        within = ((low - low.mean()) ** 2).sum() + ((high - high.mean()) ** 2).sum()
        found.append((float(within), float(high.mean() - low.mean()), float(ordered[cut - 1])))
    if not found or len(ordered) <= 2 * FEWEST_REPEATS:
        return np.zeros(len(values), dtype=bool), 0.0, 0.0
    within, gap, top = min(found)
    sd = float(np.sqrt(within / (len(ordered) - 2)))
    return values > top, gap, gap / sd if sd else np.inf


def changed(trials: pd.DataFrame) -> set[str]:
    """The trials of the repeats in which the machine was in its less frequent state of the run."""
    lesser = {one for slow, others in _states(trials) for one in min(slow, others, key=len)}
    of_row = zip(trials["run_id"], trials["hostname"], trials["repeat"], strict=True)
    return set(trials["trial_id"][[repeat in lesser for repeat in of_row]])
