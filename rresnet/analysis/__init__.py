"""Answers from the tables: speedups, paired and with intervals. Needs neither Ray nor torch."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from rresnet.analysis.statistics import (
    DRIFT_LIMIT,
    MINIMUM_REPEATS,
    RATE_DRIFT_LIMIT,
    Components,
    Interval,
    log_mean_interval,
    repeats_needed,
    variance_components,
)
from rresnet.cell import CELL_COLUMNS, DEVICES
from rresnet.grid import AS_WRITTEN
from rresnet.tables.measurement import DEFAULTS, TRIAL_KEY
from rresnet.tables.place import Location
from rresnet.tables.reading import StoreError, check_there, read_tables

PAIR = ["run_id", "hostname", "repeat"]  # rows alike in these ran right after one another
APART_SECONDS = 600.0  # and another command: the machine may have changed meanwhile
# Rows alike in these may be averaged: the machine, its software, our own, and the data.
AVERAGED_WITHIN = ["hostname", "environment_fingerprint", "git_commit", "dataset_fingerprint"]


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The tables of a results folder as DataFrames."""

    trials: pd.DataFrame
    """One row for every planned trial, whatever became of it."""
    windows: pd.DataFrame
    """One row for every timed stretch of steps, those of the warm-up too."""
    epochs: pd.DataFrame
    """One row for every epoch of a trial with `--epochs`."""
    losses: pd.DataFrame
    """One row for every hundredth step of a trial with `--epochs`."""


@dataclass(frozen=True, kw_only=True)
class Lead:
    """How well a ratio is known, and what it would take to know it better."""

    half_width: float  # of its interval, as a share of the ratio
    parts: Components
    repeats_for: Callable[[float], int | None]  # repeats in all until the half-width is at most so much
    processes_differ: Callable[[float], bool]  # so much that no number of repeats in them gets there, without any drift


def read(results: Location | Sequence[Location] = "results") -> Tables:
    """The tables in one results folder, or in several (of several machines, say) together.

    Args:
        results: the folders, or their URLs, that an experiment's `--results-dir` named. A trial that is in several of
            them, since one is a copy of another, counts once: as where it ended last.

    Raises:
        StoreError: there is no such folder, or a file in it is damaged.
    """
    folders = [results] if isinstance(results, str | Path) else list(results)
    for folder in folders:
        check_there(folder)
    if not folders:
        raise StoreError("no results folder was named: give at least one")
    tables = [read_tables(folder) for folder in folders]
    joined = tables[0] if len(tables) == 1 else _joined(tables)
    return Tables(**{name: table.to_pandas() for name, table in joined.items()})


def trials_of(results: Location, run_id: str) -> pd.DataFrame:
    """One run's rows of the trials table."""
    return read_tables(results, ["trials"], run_id=run_id)["trials"].to_pandas()


def _joined(folders: Sequence[Mapping[str, pa.Table]]) -> dict[str, pa.Table]:
    """The tables of several folders as one; a trial that is in several is taken from where it ended last."""
    ends = [t["trials"].select([*TRIAL_KEY, "finished_at"]).to_pandas().assign(folder=i) for i, t in enumerate(folders)]
    in_order = pd.concat(ends).sort_values("finished_at", kind="stable", na_position="first")
    home = in_order.drop_duplicates(TRIAL_KEY, keep="last").set_index(TRIAL_KEY)["folder"]
    joined = {}
    for name in folders[0]:
        parts = []
        for i, tables in enumerate(folders):
            rows = pd.MultiIndex.from_frame(tables[name].select(TRIAL_KEY).to_pandas())
            parts.append(tables[name].filter(pa.array(home.reindex(rows).to_numpy() == i)))
        joined[name] = pa.concat_tables(parts)
    return joined


def repeats_interval(
    values: "pd.Series[float]", rows: pd.DataFrame, level: float = 0.95, drift_limit: float = DRIFT_LIMIT
) -> Interval:
    """The geometric mean of `values`, one for each of `rows`, with its interval over repeats."""
    return log_mean_interval(values.tolist(), *in_series(rows), level, drift_limit=drift_limit)


def in_series(rows: pd.DataFrame) -> tuple[list[int], list[int]]:
    """Repeats and processes of `rows`, as one series in order of time."""
    # Several runs, and machines, in one folder follow one another: their repeats and processes are numbered on.
    run = (rows["run_id"] + " " + rows["hostname"].fillna("")).rank(method="dense").astype(int)
    repeats = run * (int(rows["repeat"].max()) + 1) + rows["repeat"]
    processes = run * (int(rows["process"].max()) + 1) + rows["process"]
    return repeats.tolist(), processes.tolist()


def distinguishable(interval: Interval, floor: float | None = None) -> bool | None:
    """Whether the interval leaves out 1 and the estimate is beyond the noise floor; None where there is no interval."""
    if interval.low is None or interval.high is None:
        return None
    beyond = floor is None or abs(math.log(interval.estimate)) > math.log1p(floor)
    return beyond and not interval.low <= 1.0 <= interval.high


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, or both null."""
    return bool(one == other or (pd.isna(one) and pd.isna(other)))


def with_all_axes(trials: pd.DataFrame) -> pd.DataFrame:
    """Rows that another reader than `read` has read: with axes that they are older than at their defaults."""
    told = {axis: trials.get(axis, pd.Series(None, trials.index, object)) for axis in DEFAULTS}
    return trials.assign(**{axis: told[axis].where(told[axis].notna(), value) for axis, value in DEFAULTS.items()})


def as_written(cells: pd.DataFrame) -> "pd.Series[bool]":
    """Which cells are computed as the blog's script has it: on a GPU with the precision that PyTorch takes there."""
    # A table holds a missing number as NaN.
    written = {axis: [None, math.nan] if value is None else [value] for axis, value in vars(AS_WRITTEN).items()}
    written["precision"] = ["fp32", "tf32"]
    return pd.DataFrame({axis: cells[axis].isin(values) for axis, values in written.items()}).all(axis="columns")


def rates(trials: pd.DataFrame) -> pd.DataFrame:
    """One row a cell: its axes, images a second with interval, epoch seconds, and how its trials ended.

    No pairing shields a rate from the machine's drift: its interval allows for more of it (`RATE_DRIFT_LIMIT`).
    """
    trials = with_all_axes(trials)
    ok = trials[trials["status"] == "ok"]
    statuses = trials.groupby("cell_id")["status"].value_counts()
    found = trials.drop_duplicates("cell_id").set_index("cell_id")[list(CELL_COLUMNS)]
    found = found.join(_rate_intervals(ok)).join(_summed_up(ok))
    rate = found["images_per_second"].where(found["epoch_seconds_kind"] == "projected")
    found["epoch_seconds"] = (found["epoch_images"] / rate).fillna(found["epoch_seconds"])
    found["epoch_low"], found["epoch_high"] = (found["epoch_images"] / found[bound] for bound in ("high", "low"))
    found["statuses"] = [", ".join(f"{n} {status}" for status, n in statuses[cell].items()) for cell in found.index]
    return found.assign(repeats=found["repeats"].fillna(0).astype(int)).drop(columns="epoch_images").reset_index()


def _rate_intervals(ok: pd.DataFrame) -> pd.DataFrame:
    """By cell the mean of its rates, with its interval and how many repeats entered."""
    series = in_series(ok) if len(ok) else ([], [])
    values, repeats, processes = (np.asarray(of) for of in (ok["images_per_second"], *series))
    rows = {}
    for cell_id, at in ok.groupby("cell_id").indices.items():
        of_cell = values[at].tolist(), repeats[at].tolist(), processes[at].tolist()
        found = log_mean_interval(*of_cell, drift_limit=RATE_DRIFT_LIMIT)
        rows[cell_id] = (found.estimate, found.low, found.high, found.count)
    columns = ["images_per_second", "low", "high", "repeats"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns, dtype="float64")


def _summed_up(ok: pd.DataFrame) -> pd.DataFrame:
    """By cell what else its ok rows tell together."""
    measured = ["epoch_seconds", "images_per_second", "energy_joules", "measured_images", "peak_memory_bytes"]
    numbers = ok[[*measured, "percent_of_limit", "test_accuracy"]].astype("float64")
    numbers["epoch_images"] = numbers["epoch_seconds"] * numbers["images_per_second"]
    energy = numbers["energy_joules"].where(numbers["energy_joules"] > 0)
    numbers["epoch_joules"] = energy / numbers["measured_images"] * numbers["epoch_images"]
    of_cell = numbers.groupby(ok["cell_id"])
    votes = ok.groupby(["cell_id", "bottleneck"]).size().reset_index(name="trials")
    votes = votes.sort_values(["trials", "bottleneck"], ascending=[False, True]).drop_duplicates("cell_id")
    return pd.DataFrame(
        {
            **of_cell[["epoch_seconds", "epoch_images", "percent_of_limit"]].median(),
            **of_cell[["epoch_joules", "test_accuracy"]].mean(),
            "peak_memory_bytes": of_cell["peak_memory_bytes"].max(),
            "epoch_seconds_kind": ok.groupby("cell_id")["epoch_seconds_kind"].first(),
            "bottleneck": votes.set_index("cell_id")["bottleneck"],
        }
    )


def ratio(trials: pd.DataFrame, cell_id: str, reference_cell_id: str) -> Interval | None:
    """The paired ratio of two cells' images a second, or None when no repeat holds both."""
    pairs = paired(trials, cell_id, reference_cell_id)
    return None if pairs.empty else repeats_interval(pairs["ratio"], pairs)


def paired(trials: pd.DataFrame, cell_id: str, reference_cell_id: str) -> pd.DataFrame:
    """The ok rows of two cells side by side, one row for each repeat that holds both.

    Returns:
        `run_id`, `hostname`, `repeat`, the `ratio` of images a second, and of each side `process`, `images_per_second`,
        `quality_flags`, `started_at` and `command_started_at` (the second's with `_reference` behind).
    """
    ok, times = trials["status"] == "ok", ["started_at", "command_started_at"]
    wanted = [*PAIR, "process", "images_per_second", "quality_flags", *times, "dataset_fingerprint"]
    told = [column for column in wanted if column in trials]
    one, other = (trials.loc[ok & (trials["cell_id"] == of), told] for of in (cell_id, reference_cell_id))
    alike = [column for column in (*PAIR, "dataset_fingerprint") if column in trials]
    pairs = side_by_side(one.merge(other, on=alike, suffixes=("", "_reference")))
    return pairs.assign(ratio=pairs["images_per_second"] / pairs["images_per_second_reference"])


def side_by_side(pairs: pd.DataFrame) -> pd.DataFrame:
    """The pairs without those that two commands measured, more than `APART_SECONDS` after one another.

    A trial that was interrupted, or failed and was tried again (`--retry`) the next day, is no pair with what its
    repeat measured before. Rows that do not tell their command are believed.
    """
    started, command = (
        [pd.to_datetime(pairs[c], utc=True) for c in (name, f"{name}_reference") if c in pairs]
        for name in ("started_at", "command_started_at")
    )
    if len(started) < 2 or len(command) < 2:
        return pairs
    another = (command[0] != command[1]) & command[0].notna() & command[1].notna()
    return pairs[~(another & ((started[0] - started[1]).abs() > pd.Timedelta(seconds=APART_SECONDS)))]


def reference_cell(cells: list[dict[Any, Any]]) -> Mapping[Any, Any] | None:
    """The cell that the others are compared with: the blog's setting on the CPU at batch 64, or the nearest to it."""
    measured = [c for c in cells if c["repeats"]]
    order = sorted(
        measured,
        key=lambda c: (
            c["recipe"] != "blog",
            DEVICES.index(c["device"]),
            sum(c[axis] != value for axis, value in vars(AS_WRITTEN).items()),
            c["copy"],
            abs(c["batch_size"] - 64),
            c["num_workers"],
        ),
    )
    return order[0] if order else None


def first_two(cells: Sequence[Mapping[Any, Any]], ratio_of: Callable[[int, int], Interval | None]) -> tuple[int, int]:
    """Which of the cells, ranked by their means, is first, and which the next.

    A mean also counts repeats that another cell lacks, fast or slow ones: where a cell beats the first in the repeats
    that both have, and the interval says so, it is first instead. Cells without gaps are ranked rightly by their means.

    Args:
        cells: two or more, with how many `repeats` they have.
        ratio_of: how many times better one cell is than another, by their numbers; None where they share no repeat.
    """
    most, first, beaten = max(cell["repeats"] for cell in cells), 0, set[int]()
    while True:
        rivals = (n for n in range(len(cells)) if n != first and n not in beaten)
        gaps = (n for n in rivals if min(cells[n]["repeats"], cells[first]["repeats"]) < most)
        better = (n for n in gaps if (ratio := ratio_of(n, first)) and ratio.low is not None and ratio.low > 1)
        found = next(better, None)
        if found is None:
            break
        beaten.add(first)
        first = found
    second = next(n for n in range(len(cells)) if n != first)
    ratio = ratio_of(first, second)
    behind = ratio is not None and ratio.estimate < 1 and (ratio.low is not None or most < MINIMUM_REPEATS)
    return (second, first) if behind else (first, second)


def widest(trials: pd.DataFrame) -> Lead | None:
    """The cell whose ratio to the reference cell is known least well; None where no ratio has an interval yet."""
    cells = rates(trials).to_dict("records")
    reference = reference_cell(cells)
    if reference is None:
        return None
    found = []
    for cell in cells:
        pairs = paired(trials, cell["cell_id"], reference["cell_id"])
        if cell["cell_id"] != reference["cell_id"] and len(pairs) >= MINIMUM_REPEATS:
            found.append(lead(pairs))
    return max(found, key=lambda one: one.half_width, default=None)


def lead(pairs: pd.DataFrame) -> Lead:
    """What `paired` rows tell of their ratio. At least `MINIMUM_REPEATS` of them."""
    interval = repeats_interval(pairs["ratio"], pairs)
    assert interval.low is not None
    assert interval.high is not None
    values, order = pairs["ratio"].tolist(), in_series(pairs)
    return Lead(
        half_width=math.sqrt(interval.high / interval.low) - 1,
        parts=variance_components(values, *order),
        repeats_for=lambda target: repeats_needed(values, *order, target),
        processes_differ=lambda target: repeats_needed(values, *order, target, drift_limit=0.0) is None,
    )


def trial_seconds(trials: pd.DataFrame, cell_ids: Sequence[str]) -> dict[str, float]:
    """Median seconds that a trial of each cell took, from earlier rows; a cell never run gets the median of all."""
    ended = trials.dropna(subset=["started_at", "finished_at"])
    seconds = (ended["finished_at"] - ended["started_at"]).dt.total_seconds()
    if seconds.empty:
        return {}
    of_cell = seconds.groupby(ended["cell_id"]).median()
    return {cell_id: float(of_cell.get(cell_id, seconds.median())) for cell_id in cell_ids}
