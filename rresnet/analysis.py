"""Answers from the tables: speedups, paired and with intervals. Needs neither Ray nor torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rresnet.config import CELL_COLUMNS
from rresnet.statistics import DRIFT_LIMIT, Interval, log_mean_interval
from rresnet.store import StoreError, read_tables

# What a recipe decides: when recipes or devices are compared these may differ, and the answer names them.
RESOLVED = ("precision", "input", "execution", "channels_last", "fused_optimizer", "cpu_threads")


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The tables of a results folder as DataFrames."""

    trials: pd.DataFrame
    windows: pd.DataFrame
    epochs: pd.DataFrame


def read(results: str | Path = "results") -> Tables:
    """The tables in a results folder.

    Args:
        results: the folder that an experiment's `--results-dir` named.

    Raises:
        StoreError: there is no such folder, or a file in it is damaged.
    """
    folder = Path(results)
    if not (folder / "trials").is_dir():
        raise StoreError(
            f"no results in {folder} (no folder {folder / 'trials'}): run python experiments/compare.py first"
        )
    frames = {name: table.to_pandas() for name, table in read_tables(folder).items()}
    return Tables(**frames)


def speedup(trials: pd.DataFrame, over: str, reference: object, *, level: float = 0.95) -> pd.DataFrame:
    """How much faster each value of a column is than a reference value, all else equal.

    Trials are paired within one run, machine and repeat, where they ran right after one another; the interval is over
    repeats (see `rresnet.statistics`). When `over` is `device` or `recipe`, axes that the recipe decides may differ
    between the two sides; `differs` names them.

    Args:
        trials: rows of the trials table; only those with status ok enter.
        over: column that is compared, for example `device`, `recipe` or `precision`.
        reference: the value of that column that the others are divided by.
        level: confidence level of the interval.

    Returns:
        One row for each value of `over` and setting of the other axes: the axes, `speedup` (ratio of images a second),
        `low`, `high` (null under 3 pairs), `pairs`, `distinguishable` (the interval leaves out 1; null without one)
        and `differs`.

    Raises:
        ValueError: there is no such column, or no ok row with the reference value.
    """
    if over not in CELL_COLUMNS:
        raise ValueError(f"over must be one of {', '.join(CELL_COLUMNS)}, got {over!r}")
    ok = trials[trials["status"] == "ok"]
    values = sorted(ok[over].dropna().unique().tolist())
    if reference not in values:
        raise ValueError(f"no ok rows with {over} = {reference!r}; there are: {', '.join(map(str, values)) or 'none'}")
    matched, free = _matched_axes(ok, over)
    is_reference = ok[over] == reference
    keys = ["run_id", "hostname", "repeat", *matched]
    pairs = ok[~is_reference].merge(ok[is_reference], on=keys, suffixes=("", "_reference"))
    rows = []
    for group, side in pairs.groupby([over, *matched], dropna=False, sort=True):
        ratio = side["images_per_second"] / side["images_per_second_reference"]
        # Identical cells do the same work, so the machine's drift can't move their ratio.
        interval = _interval(ratio, side, level, drift_limit=0.0 if over == "copy" else DRIFT_LIMIT)
        differs = [f"{c}: {side[c].iloc[0]} vs {side[c + '_reference'].iloc[0]}" for c in free if _unlike(side, c)]
        rows.append(
            {
                **dict(zip([over, *matched], group, strict=True)),
                "reference": reference,
                "speedup": interval.estimate,
                "low": interval.low,
                "high": interval.high,
                "pairs": interval.count,
                "distinguishable": distinguishable(interval),
                "differs": "; ".join(differs),
            }
        )
    columns = [over, *matched, "reference", "speedup", "low", "high", "pairs", "distinguishable", "differs"]
    return pd.DataFrame(rows, columns=columns)


def _matched_axes(ok: pd.DataFrame, over: str) -> tuple[list[str], list[str]]:
    """Axes that must be equal in a pair, and those that may differ because a recipe resolved them.

    An axis that takes several values for one recipe on one device was asked for, so it must be equal all the same.
    """
    axes = [c for c in CELL_COLUMNS if c != over]
    if over not in ("device", "recipe"):
        return axes, []
    asked = [c for c in CELL_COLUMNS if c not in RESOLVED]
    counts = ok.groupby(asked, dropna=False)[list(RESOLVED)].nunique(dropna=False)
    free = [c for c in RESOLVED if len(counts) == 0 or counts[c].max() <= 1]
    return [c for c in axes if c not in free], free


def _unlike(side: pd.DataFrame, column: str) -> bool:
    return bool((side[column] != side[column + "_reference"]).any())


def _interval(
    values: "pd.Series[float]", rows: pd.DataFrame, level: float, drift_limit: float = DRIFT_LIMIT
) -> Interval:
    # Several runs, and machines, in one folder follow one another: their repeats and processes are numbered on.
    run = (rows["run_id"] + " " + rows["hostname"].fillna("")).rank(method="dense").astype(int)
    repeats = run * (int(rows["repeat"].max()) + 1) + rows["repeat"]
    processes = run * (int(rows["process"].max()) + 1) + rows["process"]
    return log_mean_interval(values.tolist(), repeats.tolist(), processes.tolist(), level, drift_limit=drift_limit)


def distinguishable(interval: Interval) -> bool | None:
    """Whether the interval leaves out 1; None where there is no interval."""
    if interval.low is None or interval.high is None:
        return None
    return not interval.low <= 1.0 <= interval.high


def rates(trials: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """One row a cell: its axes, images a second with interval, epoch seconds, and how its trials ended."""
    rows = []
    for cell_id, of_cell in trials.groupby("cell_id", sort=False):
        ok = of_cell[of_cell["status"] == "ok"]
        interval = _interval(ok["images_per_second"], ok, level) if len(ok) else None
        rows.append(
            {
                "cell_id": cell_id,
                **{c: of_cell[c].iloc[0] for c in CELL_COLUMNS},
                "images_per_second": interval.estimate if interval else None,
                "low": interval.low if interval else None,
                "high": interval.high if interval else None,
                "epoch_seconds": ok["epoch_seconds"].median() if len(ok) else None,
                "epoch_seconds_kind": ok["epoch_seconds_kind"].iloc[0] if len(ok) else None,
                "test_accuracy": ok["test_accuracy"].mean() if len(ok) else None,
                "statuses": ", ".join(f"{n} {status}" for status, n in of_cell["status"].value_counts().items()),
                "repeats": len(ok),
            }
        )
    return pd.DataFrame(rows).astype({"images_per_second": "float64"}) if rows else pd.DataFrame()


def ratio(trials: pd.DataFrame, cell_id: str, reference_cell_id: str, *, level: float = 0.95) -> Interval | None:
    """The paired ratio of two cells' images a second, or None when no repeat holds both."""
    ok = trials[trials["status"] == "ok"]
    pairs = ok[ok["cell_id"] == cell_id].merge(
        ok[ok["cell_id"] == reference_cell_id], on=["run_id", "hostname", "repeat"], suffixes=("", "_reference")
    )
    if pairs.empty:
        return None
    return _interval(pairs["images_per_second"] / pairs["images_per_second_reference"], pairs, level)


def trial_seconds(trials: pd.DataFrame, cell_ids: Sequence[str]) -> dict[str, float]:
    """Median seconds that a trial of each cell took, from earlier rows; a cell never run gets the median of all."""
    ended = trials.dropna(subset=["started_at", "finished_at"])
    seconds = (ended["finished_at"] - ended["started_at"]).dt.total_seconds()
    if seconds.empty:
        return {}
    of_cell = seconds.groupby(ended["cell_id"]).median()
    return {cell_id: float(of_cell.get(cell_id, seconds.median())) for cell_id in cell_ids}
