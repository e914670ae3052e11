"""Pairs: rows of two cells that ran right after one another, their ratio, and how well it is known."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rresnet.analysis import alike
from rresnet.analysis.statistics import DRIFT_LIMIT, Interval, Series, in_order, log_mean_interval

APART_SECONDS = 600.0  # between rows that two commands measured: after longer, the machine may have changed


def ratio(trials: pd.DataFrame, cell_id: str, reference_cell_id: str) -> Interval | None:
    """The paired ratio of two cells' images a second, or None when no repeat holds both."""
    return ratios(trials, cell_id, reference_cell_id).get(cell_id)


def ratios(trials: pd.DataFrame, cell_id: str | None, reference_cell_id: str | None) -> dict[str, Interval]:
    """What `ratio` gives for a cell and each of the others, for which None stands; by their ids, if they have pairs."""
    pairs = paired(trials, cell_id, reference_cell_id)
    return intervals(pairs["ratio"], pairs, "cell_id" if reference_cell_id else "cell_id_reference")


def paired(trials: pd.DataFrame, cell_id: str | None, reference_cell_id: str | None) -> pd.DataFrame:
    """Pair the ok rows of two cells: one row for each repeat that holds both, in environments that are alike.

    One of the two may be None, which stands for all other cells; that takes hardly longer than a single one.

    Returns, besides the columns of the environment:
        `run_id`, `hostname`, `repeat`, the `ratio` of images a second, and for each side `cell_id`, `process`,
        `images_per_second`, `quality_flags`, `started_at`, `command_started_at` and `git_commit` (the second side's
        with the suffix `_reference`).
    """
    ok, when = trials["status"] == "ok", ["started_at", "command_started_at", "git_commit"]
    wanted = [*alike.PAIRED, "cell_id", "process", "images_per_second", "quality_flags", *when]
    there = [c for c in (*wanted, "model", "environment_fingerprint", *alike.COMPARED) if c in trials]
    one, other = (
        trials.loc[ok & (trials["cell_id"] == cell if cell else trials["cell_id"] != its_other), there]
        for cell, its_other in ((cell_id, reference_cell_id), (reference_cell_id, cell_id))
    )
    keys = [column for column in (*alike.PAIRED, "dataset_fingerprint") if column in trials]
    pairs = _comparable(side_by_side(one.merge(other, on=keys, suffixes=("", "_reference"))))
    return pairs.assign(ratio=pairs["images_per_second"] / pairs["images_per_second_reference"])


def _comparable(pairs: pd.DataFrame) -> pd.DataFrame:
    """The pairs whose rows agree in `alike.COMPARED`, as far as both are known: a run may mix environments."""
    here, there = (pairs.get(f"environment_fingerprint{side}") for side in ("", "_reference"))
    if here is not None and there is not None and here.notna().all() and here.equals(there):
        return pairs
    fine = pd.Series(True, pairs.index)
    for column in alike.COMPARED:
        if f"{column}_reference" in pairs:
            one, other = pairs[column], pairs[f"{column}_reference"]
            same = (one == other) | one.isna() | other.isna()
            fine &= same if column != "model_code" else same | (pairs["model"] != pairs["model_reference"])
    return pairs[fine]


def mixed(trials: pd.DataFrame) -> list[str]:
    """Say in a sentence if a run holds rows of unlike environments of one machine, and which columns differ."""
    ok = trials[trials["status"] == "ok"]
    columns = [column for column in (*alike.COMPARED, "git_commit") if column in ok]
    unlike = [c for c in columns if ok.groupby(["run_id", "hostname", "model"], dropna=False)[c].nunique().gt(1).any()]
    if not unlike:
        return []
    told = f"This run mixes rows from different environments (they differ in {', '.join(unlike)})"
    return [f"{told}: a ratio uses pairs within one, a rate is the mean over all. --fresh measures everything again."]


def unlike_machines(trials: pd.DataFrame) -> list[str]:
    """Say in a sentence if a run holds rows of unlike machines, and in what they differ."""
    ok = trials[trials["status"] == "ok"]
    unlike = [column for column in alike.MACHINE if column in ok and ok[column].nunique() > 1]
    if not unlike or ok["hostname"].nunique() < 2:
        return []
    told = f"The machines of this run are unlike (they differ in {', '.join(unlike)})"
    return [f"{told}: rates and ratios are means over all of them. rresnet report has each by itself."]


def side_by_side(pairs: pd.DataFrame) -> pd.DataFrame:
    """Drop the pairs whose rows are of two commits, or that two commands measured more than `APART_SECONDS` apart.

    A trial that was interrupted, or that failed and was tried again (`--retry`) the next day, does not pair with what
    its repeat measured before. Pairs whose rows do not record their command or commit are kept.
    """
    if "git_commit_reference" in pairs:
        here, there = pairs["git_commit"], pairs["git_commit_reference"]
        pairs = pairs[(here == there) | here.isna() | there.isna()]
    started, command = (
        [moments(pairs[c]) for c in (name, f"{name}_reference") if c in pairs]
        for name in ("started_at", "command_started_at")
    )
    if len(started) < 2 or len(command) < 2:
        return pairs
    another = (command[0] != command[1]) & command[0].notna() & command[1].notna()
    return pairs[~(another & ((started[0] - started[1]).abs() > pd.Timedelta(seconds=APART_SECONDS)))]


def moments(column: "pd.Series[Any]") -> "pd.Series[pd.Timestamp]":
    """A column of times as such; from CSV or JSON they come as texts, some without fractions of a second."""
    return pd.to_datetime(column, utc=True, format="ISO8601")


def intervals(
    values: "pd.Series[float]", rows: pd.DataFrame, by: Any, level: float = 0.95, drift_limit: float = DRIFT_LIMIT
) -> dict[Any, Interval]:
    """For each group of `rows`, by its key: the geometric mean of their `values` with its interval over repeats."""
    of_row = [values.to_numpy(), *in_series(rows)]
    return {
        key: log_mean_interval(in_order(*(of[at] for of in of_row)), level, drift_limit=drift_limit)
        for key, at in rows.groupby(by).indices.items()
    }


def in_series(rows: pd.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Number the repeats and processes of `rows` as one series in order of time; return also when each was measured.

    The times are in seconds since the epoch, NaN where they are not known. A repeat that was measured again (`--retry`)
    comes where it then was.
    """
    # Several runs, or machines, in one folder follow one another: the numbers of repeats and processes continue.
    run = pd.Series(pd.factorize(rows["run_id"] + " " + rows["hostname"].fillna(""), sort=True)[0], rows.index)
    started = moments(rows["started_at"] if "started_at" in rows else pd.Series(pd.NaT, rows.index))
    times = (started - pd.Timestamp(0, tz="UTC")).dt.total_seconds()
    first = times.groupby([run, rows["repeat"]]).transform("min")
    repeats = rows.groupby([run, first, rows["repeat"]], dropna=False).ngroup()
    processes = run * (rows["process"].max() + 1) + rows["process"]
    return np.asarray(repeats, np.int64), np.asarray(processes, np.int64), np.asarray(times, np.float64)


def series_of(pairs: pd.DataFrame) -> Series:
    """The ratios of `paired` rows in order of time; there must be at least one."""
    return in_order(pairs["ratio"], *in_series(pairs))
