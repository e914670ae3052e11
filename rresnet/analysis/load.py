"""Does the answer depend on how loaded the machine was? Judged by slow canaries and load flags."""

from collections.abc import Collection, Iterable

import numpy as np
import pandas as pd

from rresnet.analysis.pairing import paired, repeats_interval
from rresnet.analysis.statistics import Interval, independent_ratio
from rresnet.quality.flags import LOAD_FLAGS
from rresnet.quality.states import Repeat

LEVEL = 0.97  # at which the two states must differ


def quiet_and_loaded(
    trials: pd.DataFrame,
    cell_id: str,
    reference_cell_id: str,
    *,
    slow: Collection[Repeat],
) -> tuple[Interval, Interval] | None:
    """The paired ratio of two cells while the machine was quiet, and while it was loaded, where the two differ.

    A repeat is loaded if it is in `slow` (`slow_repeats`: its canary was slow) or a row of the pair carries one of
    `LOAD_FLAGS`. The two ratios differ if the interval of one over the other (`independent_ratio`) leaves out 1, at
    `LEVEL` because every cell is tested. All intervals cover only the minutes that were measured: what other states the
    machine has is not the question here. Returns None if the two do not differ, or with fewer than 3 repeats in either
    state.
    """
    pairs = paired(trials, cell_id, reference_cell_id)
    loaded = np.array(
        [
            (row["run_id"], row["hostname"], row["repeat"]) in slow
            or bool(LOAD_FLAGS & {*_flags(row["quality_flags"]), *_flags(row["quality_flags_reference"])})
            for row in pairs.to_dict("records")
        ],
        dtype=bool,
    )
    if loaded.all() or not loaded.any():
        return None
    strict, told = (
        [repeats_interval(side["ratio"], side, level, drift_limit=0.0) for side in (pairs[~loaded], pairs[loaded])]
        for level in (LEVEL, 0.95)
    )
    return (told[0], told[1]) if independent_ratio(*strict).distinguishable else None


def _flags(value: Iterable[str] | float | None) -> Iterable[str]:
    return value if isinstance(value, Iterable) else ()  # null, as None or NaN: none are known
