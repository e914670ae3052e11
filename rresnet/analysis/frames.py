"""The tables of results folders as DataFrames. Needs neither Ray nor torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from rresnet.analysis import alike
from rresnet.cell import CELL_COLUMNS
from rresnet.config import OF_SIZES
from rresnet.tables.measurement import DEFAULTS, TRIAL_KEY
from rresnet.tables.place import Location, StoreError
from rresnet.tables.reading import check_there, read_tables

_IDENTITY = [*alike.PAIRED, "cell_id", "process"]  # what tells a row from all others, and from which process it is


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The tables of a results folder as DataFrames."""

    trials: pd.DataFrame
    """One row for every planned trial, whatever became of it."""
    windows: pd.DataFrame
    """One row for every timed stretch of steps, including those of the warm-up."""
    epochs: pd.DataFrame
    """One row for every epoch of a trial with `--epochs`."""
    losses: pd.DataFrame
    """One row for every hundredth step of a trial with `--epochs`."""


def read(results: Location | Sequence[Location] = "results") -> Tables:
    """Read the tables of one results folder, or of several (say, of several machines) together.

    Args:
        results: the folders, or their URLs, that were given to an experiment as `--results-dir`. A trial that is in
            several of them, because one is a copy of another, counts once: as in the folder where it ended last.

    Raises:
        StoreError: there is no such folder, or a file in it is damaged.
    """
    return read_with_homes([results] if isinstance(results, str | Path) else list(results))[0]


def read_with_homes(folders: Sequence[Location]) -> tuple[Tables, dict[str, int]]:
    """Read as `read` does; say also, by its position, in which of the folders each run ended last."""
    for folder in folders:
        check_there(folder)
    if not folders:
        raise StoreError("no results folder was named: give at least one")
    tables = [read_tables(folder) for folder in folders]
    if len(tables) == 1:
        joined, homes = tables[0], {str(run_id): 0 for run_id in tables[0]["trials"]["run_id"].unique().to_pylist()}
    else:
        joined, homes = _joined(tables)
    return Tables(**{name: table.to_pandas() for name, table in joined.items()}), homes


def trials_of(results: Location, run_id: str) -> pd.DataFrame:
    """One run's rows of the trials table."""
    return read_tables(results, ["trials"], run_id=run_id)["trials"].to_pandas()


def _joined(folders: Sequence[Mapping[str, pa.Table]]) -> tuple[dict[str, pa.Table], dict[str, int]]:
    """The tables of several folders as one; a trial, or a run, that is in several has its home where it ended last."""
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
    return joined, {str(run_id): int(last) for run_id, last in home.groupby("run_id").last().items()}


def with_all_axes(trials: pd.DataFrame) -> pd.DataFrame:
    """Bring rows from any reader to the form of `read`: plain dtypes, and defaults for axes newer than the rows."""
    if not isinstance(trials, pd.DataFrame):
        raise TypeError(
            f"expected a pandas DataFrame of trials, such as rresnet.read(...).trials, got {_full_name(type(trials))}"
        )
    dtypes = {name: trials[name].dtype for name in trials}
    odd = [name for name, of in dtypes.items() if of == "category" or getattr(of, "na_value", None) is pd.NA]
    trials = trials.assign(**{str(name): _plain(trials[name]) for name in odd})
    values = {axis: trials.get(axis, pd.Series(None, trials.index, object)) for axis in DEFAULTS}
    return trials.assign(**{axis: values[axis].where(values[axis].notna(), value) for axis, value in DEFAULTS.items()})


def checked(trials: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Rows from any reader in the form of `read`, each once.

    Raises:
        TypeError: they are no DataFrame.
        ValueError: they lack one of `columns`, or of those that tell rows apart, or a row is there twice.
    """
    trials = with_all_axes(trials)
    check_columns(trials, ["status", *_IDENTITY, *CELL_COLUMNS, *columns])
    ok = trials[trials["status"] == "ok"]
    if null := [column for column in _IDENTITY if column != "hostname" and ok[column].isna().any()]:
        raise ValueError(f"ok rows have no {', '.join(null)}: leave these rows out")
    if ok.duplicated([*alike.PAIRED, "cell_id"]).any():
        raise ValueError('some rows are there twice: give trials.drop_duplicates(["run_id", "trial_id"])')
    return trials


def check_columns(trials: pd.DataFrame, needed: Sequence[str]) -> None:
    """Raise ValueError if rows lack columns."""
    if lacking := [column for column in dict.fromkeys(needed) if column not in trials]:
        raise ValueError(f"trials lack the columns {', '.join(lacking)}: give rows as rresnet.read returns them")


def _full_name(kind: type) -> str:
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]}.{kind.__name__}"


def _plain(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Convert a column of categories, or with `pd.NA` (neither equal nor unequal to anything), to what `read` gives."""
    values = pa.array(column)
    values = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
    plain: pd.Series[Any] = values.to_pandas().set_axis(column.index)
    return plain


def without_probes(trials: pd.DataFrame) -> pd.DataFrame:
    """Leave out the probes of `--batch-size auto`, unless nothing else is ok: single, and too far apart to pair."""
    if "experiment" not in trials:
        return trials
    others = ~trials["experiment"].astype(str).str.endswith(OF_SIZES)
    return trials[others] if (others & (trials["status"] == "ok")).any() else trials


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, or both null."""
    return bool(one == other or (pd.isna(one) and pd.isna(other)))
