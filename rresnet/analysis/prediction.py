"""A prediction, not a measurement: step time against batch size as a straight line, and what follows from it."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize

from rresnet.analysis.alike import AVERAGED
from rresnet.analysis.frames import check_columns, with_all_axes
from rresnet.cell import CELL_COLUMNS

SERIES_COLUMNS = [column for column in CELL_COLUMNS if column not in ("batch_size", "copy")]
FEWEST_TO_LEAVE_ONE_OUT = 4  # leaves three points: two always fit a line, a third can be off it
NEAR_PEAK = 0.9


def fit(trials: pd.DataFrame) -> pd.DataFrame:
    """Fit a line through the step times of each series: what a step takes at all, and what each image adds.

    `step seconds = fixed_seconds + seconds_per_image * batch_size` is fitted by least squares of the relative errors,
    with neither term below 0 (Lawson and Hanson 1974), to one point per batch size: the geometric mean over its
    repeats.

    Args:
        trials: rows of the trials table; only those with status ok enter, and no second copies (`--aa`).

    Returns:
        One row for each machine and its software, commit, data, and setting of the axes other than batch size: these,
        `fixed_seconds`, `seconds_per_image`, `peak_images_per_second` (the limit for large batches),
        `batch_size_at_90_percent` (of that peak), `leave_one_out_error` (largest relative error when each size is
        predicted from the others; null under 4 sizes), `sizes` (how many), `smallest_batch_size` and
        `largest_batch_size`. What a single size can't tell is null.

    Raises:
        ValueError: `trials` lack columns.
    """
    trials = with_all_axes(trials)
    check_columns(trials, ["status", *CELL_COLUMNS, *AVERAGED, "images_per_second"])
    ok = trials[(trials["status"] == "ok") & (trials["copy"] == 0)]
    rows = []
    for key, series in ok.groupby([*SERIES_COLUMNS, *AVERAGED], dropna=False, sort=False):
        rates = np.exp(np.log(series["images_per_second"]).groupby(series["batch_size"]).mean())
        named: dict[str, Any] = dict(zip([*SERIES_COLUMNS, *AVERAGED], key, strict=True))
        batches = rates.index.to_numpy(dtype=np.float64)
        seconds = batches * named["num_workers"] / rates.to_numpy(dtype=np.float64)
        rows.append({**named, **_line_columns(batches, seconds, named["num_workers"])})
    return pd.DataFrame(rows, columns=[*SERIES_COLUMNS, *AVERAGED, *LINE_COLUMNS])


def predict(fit_row: Mapping[Any, Any], batch_size: int) -> float:
    """Predict the images a second over all workers for a batch size, by the line in a row of `fit`.

    Raises:
        ValueError: the row has no line (one size was measured), or the batch size is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if pd.isna(fit_row["fixed_seconds"]):
        raise ValueError(f"no line through {fit_row['sizes']} batch size: measure at least 2")
    seconds = fit_row["fixed_seconds"] + fit_row["seconds_per_image"] * batch_size
    return float(batch_size * fit_row["num_workers"] / seconds)


LINE_COLUMNS = [
    "fixed_seconds",
    "seconds_per_image",
    "peak_images_per_second",
    "batch_size_at_90_percent",
    "leave_one_out_error",
    "sizes",
    "smallest_batch_size",
    "largest_batch_size",
]


def _line_columns(batches: NDArray[np.float64], seconds: NDArray[np.float64], workers: int) -> dict[str, Any]:
    sizes = len(batches)
    known = {"sizes": sizes, "smallest_batch_size": int(batches.min()), "largest_batch_size": int(batches.max())}
    if sizes < 2:
        return known
    fixed, per_image = _line(batches, seconds)
    return known | {
        "fixed_seconds": fixed,
        "seconds_per_image": per_image,
        "peak_images_per_second": workers / per_image if per_image else None,
        "batch_size_at_90_percent": _batch_size_at(NEAR_PEAK, fixed, per_image) if per_image else None,
        "leave_one_out_error": _leave_one_out(batches, seconds) if sizes >= FEWEST_TO_LEAVE_ONE_OUT else None,
    }


def _line(batches: NDArray[np.float64], seconds: NDArray[np.float64]) -> tuple[float, float]:
    # Each row is divided by its step time, so that the target is 1 and the errors are relative.
    relative = np.column_stack([np.ones_like(batches), batches]) / seconds[:, None]
    (fixed, per_image), _ = optimize.nnls(relative, np.ones(len(batches)))
    return float(fixed), float(per_image)


def _batch_size_at(share: float, fixed: float, per_image: float) -> int:
    """The smallest batch size whose rate, b / (fixed + per_image b), is that share of the peak, 1 / per_image."""
    exact = share / (1 - share) * fixed / per_image
    return max(1, math.ceil(exact * (1 - 1e-9)))  # rounding errors do not lift a whole number


def _leave_one_out(batches: NDArray[np.float64], seconds: NDArray[np.float64]) -> float:
    """The largest relative error of the rate when each size is predicted from the others."""
    errors = []
    for left_out in range(len(batches)):
        fixed, per_image = _line(np.delete(batches, left_out), np.delete(seconds, left_out))
        errors.append(abs(seconds[left_out] / (fixed + per_image * batches[left_out]) - 1))
    return float(max(errors))
