"""What makes rows doubtful: their flags, and whether the answer depends on how loaded the machine was."""

from collections.abc import Collection, Iterable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rresnet.analysis import alike
from rresnet.analysis.pairing import APART_SECONDS, intervals, moments
from rresnet.analysis.statistics import Interval, independent_ratio
from rresnet.quality.flags import ADVICE, LOAD_FLAGS
from rresnet.quality.states import Repeat

LEVEL = 0.97  # at which the two states must differ


def quiet_and_loaded(pairs: pd.DataFrame, *, slow: Collection[Repeat]) -> tuple[Interval, Interval] | None:
    """The ratio of two cells' `paired` rows while the machine was quiet, and while it was loaded, where they differ.

    A repeat is loaded if it is in `slow` (`slow_repeats`: its canary was slow) or a row of the pair carries one of
    `LOAD_FLAGS`. The two ratios differ if the interval of one over the other (`independent_ratio`) leaves out 1, at
    `LEVEL` because every cell is tested. All intervals cover only the minutes that were measured: what other states the
    machine has is not the question here. Returns None if the two do not differ, or with fewer than 3 repeats in either
    state.
    """
    repeats = zip(*(pairs[column] for column in alike.PAIRED), strict=True)
    loaded = disturbed(pairs) | np.array([repeat in slow for repeat in repeats], dtype=bool)
    if loaded.all() or not loaded.any():
        return None
    strict, told = (intervals(pairs["ratio"], pairs, loaded, level, drift_limit=0.0) for level in (LEVEL, 0.95))
    return (told[False], told[True]) if independent_ratio(strict[False], strict[True]).distinguishable else None


def disturbed(rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Which of the trials, or of `paired` ones, other work disturbed, as their `LOAD_FLAGS` say: [rows]."""
    flags = [rows["quality_flags"], *(rows[other] for other in ["quality_flags_reference"] if other in rows)]
    return np.array([any(LOAD_FLAGS & {*_flags(one)} for one in row) for row in zip(*flags, strict=True)], dtype=bool)


def to_repeat(trials: pd.DataFrame) -> set[str]:
    """Ids of the trials of one run that are to be measured again: whole repeats, so that their rows still pair.

    They are chosen by flags alone, never by a rate, which would bend the answer: each repeat in which other work
    disturbed a trial, and each that such a choice has left torn when it was interrupted, whose rows are on several
    machines or too far apart to pair (`APART_SECONDS`).
    """
    ok = trials[trials["status"] == "ok"]
    again = set[str]()
    for _, rows in ok.groupby("repeat"):
        started = moments(rows["started_at"])
        apart = started.max() - started.min() > pd.Timedelta(seconds=APART_SECONDS)
        commands = rows["command_started_at"].nunique()
        torn = rows["hostname"].nunique() > 1 or (commands > 1 and apart)
        if torn or disturbed(rows).any():
            again |= {*rows["trial_id"]}
    return again


def _flags(value: Iterable[str] | float | None) -> Iterable[str]:
    return value if isinstance(value, Iterable) else ()  # null, as None or NaN: none are known


def flagged(trials: pd.DataFrame) -> list[tuple[str, int, str]]:
    """Each quality flag of the rows, how many carry it, and what to do about it."""
    counts = trials["quality_flags"].explode().dropna().value_counts()
    return [(str(flag), int(count), ADVICE.get(str(flag), "")) for flag, count in counts.items()]


def doubts(trials: pd.DataFrame) -> list[str]:
    """Say in a sentence if most rows are doubtful."""
    doubtful = int(trials["quality_flags"].map(lambda of_row: of_row is not None and len(of_row) > 0).sum())
    if doubtful <= len(trials) / 2:
        return []
    names = ", ".join(flag for flag, _, _ in flagged(trials))
    return [f"{doubtful} of {len(trials)} rows are doubtful: {names}."]
