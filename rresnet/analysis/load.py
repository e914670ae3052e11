"""Does the answer depend on how loaded the machine was? Told by the slow canaries and the load flags."""

from collections.abc import Collection, Iterable

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from rresnet.analysis.pairing import paired, repeats_interval
from rresnet.analysis.statistics import MINIMUM_REPEATS, Interval
from rresnet.quality.flags import LOAD_FLAGS
from rresnet.quality.states import Repeat


def quiet_and_loaded(
    trials: pd.DataFrame,
    cell_id: str,
    reference_cell_id: str,
    *,
    slow: Collection[Repeat],
) -> tuple[Interval, Interval] | None:
    """The paired ratio of two cells while the machine was quiet, and while it was loaded, where the two differ.

    A repeat is loaded when it is in `slow` (`slow_repeats`: its canary was slow) or a row of the pair carries one of
    `LOAD_FLAGS`. The two differ when Welch's t-test (1947) says so at 95 %; else, or with fewer than 3 repeats in
    either state, None.
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
    if loaded.sum() < MINIMUM_REPEATS or (~loaded).sum() < MINIMUM_REPEATS:
        return None
    logs = np.log(pairs["ratio"].to_numpy())
    if not _differ(logs[loaded], logs[~loaded]):
        return None
    quiet, busy = (repeats_interval(side["ratio"], side) for side in (pairs[~loaded], pairs[loaded]))
    return quiet, busy


def _differ(a: NDArray[np.float64], b: NDArray[np.float64], level: float = 0.95) -> bool:
    errors = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    if not sum(errors):
        return bool(a.mean() != b.mean())
    freedom = sum(errors) ** 2 / (errors[0] ** 2 / (len(a) - 1) + errors[1] ** 2 / (len(b) - 1))
    return bool(abs(a.mean() - b.mean()) > special.stdtrit(freedom, (1 + level) / 2) * np.sqrt(sum(errors)))


def _flags(value: Iterable[str] | float | None) -> Iterable[str]:
    return value if isinstance(value, Iterable) else ()  # null, as None or NaN: none are known
