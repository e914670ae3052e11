"""Answers from the tables: speedups, paired and with intervals. Needs neither Ray nor torch."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from rresnet import place
from rresnet.config import AXES, CELL_COLUMNS, DEVICES
from rresnet.grid import AS_WRITTEN
from rresnet.measurement import filled
from rresnet.place import Location
from rresnet.statistics import (
    DRIFT_LIMIT,
    MINIMUM_REPEATS,
    Components,
    Interval,
    log_mean_interval,
    repeats_needed,
    variance_components,
)
from rresnet.store import KEY, StoreError, read_tables

# What must be alike for a ratio to mean anything, whatever is compared.
ALIKE = (
    "dataset_fingerprint",
    "cpu_model",
    "cpu_count",
    "os_version",
    "python_version",
    "torch_version",
    "torchvision_version",
    "cuda_version",
    "rresnet_version",
)


PAIR = ["run_id", "hostname", "repeat"]  # rows alike in these ran right after one another
PLACE = ["hostname", "environment_fingerprint"]  # rows alike in these may be averaged: one machine and its software


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The tables of a results folder as DataFrames."""

    trials: pd.DataFrame
    windows: pd.DataFrame
    epochs: pd.DataFrame
    losses: pd.DataFrame


@dataclass(frozen=True, kw_only=True)
class Lead:
    """A ratio, how well it is known, and what it would take to know it better."""

    interval: Interval
    half_width: float  # of the interval, as a share of the ratio
    parts: Components
    repeats_for: Callable[[float], int | None]  # repeats in all until the half-width is at most so much


def read(results: Location | Sequence[Location] = "results") -> Tables:
    """The tables in one results folder, or in several (of several machines, say) together.

    Args:
        results: the folders, or their URLs, that an experiment's `--results-dir` named. A trial that is in several of
            them, since one is a copy of another, counts once: as where it ended last.

    Raises:
        StoreError: there is no such folder, or a file in it is damaged.
    """
    folders = [results] if isinstance(results, str | Path) else list(results)
    for kept in map(place.at, folders):
        if not kept.holds("trials"):
            raise StoreError(
                f"no results in {kept.told('')} (no folder {kept.told('trials')}): run python experiments/compare.py "
                "first"
            )
    if not folders:
        raise StoreError("no results folder was named: give at least one")
    tables = [read_tables(folder) for folder in folders]
    joined = tables[0] if len(tables) == 1 else _joined(tables)
    return Tables(
        **{name: table.to_pandas() for name, table in (joined | {"trials": filled(joined["trials"])}).items()}
    )


def trials_of(results: Location, run_id: str) -> pd.DataFrame:
    """One run's rows of the trials table."""
    return filled(read_tables(results, run_id=run_id)["trials"]).to_pandas()


def _joined(folders: Sequence[Mapping[str, pa.Table]]) -> dict[str, pa.Table]:
    """The tables of several folders as one; a trial that is in several is taken from where it ended last."""
    key = list(KEY)
    ends = [t["trials"].select([*key, "finished_at"]).to_pandas().assign(folder=i) for i, t in enumerate(folders)]
    in_order = pd.concat(ends).sort_values("finished_at", kind="stable", na_position="first")
    home = in_order.drop_duplicates(key, keep="last").set_index(key)["folder"]
    joined = {}
    for name in folders[0]:
        parts = []
        for i, tables in enumerate(folders):
            rows = pd.MultiIndex.from_frame(tables[name].select(key).to_pandas())
            parts.append(tables[name].filter(pa.array(home.reindex(rows).to_numpy() == i)))
        joined[name] = pa.concat_tables(parts)
    return joined


def speedup(
    trials: pd.DataFrame, over: str, reference: object, *, level: float = 0.95, allow: Sequence[str] = ()
) -> pd.DataFrame:
    """How much faster each value of a column is than a reference value, all else equal.

    Trials are paired within one run, machine and repeat, where they ran right after one another; the interval is over
    repeats (see `rresnet.statistics`). When `over` is `device` or `recipe`, axes that the recipe decides may differ
    between the two sides; `differs` names them. Where `trials` hold identical cells (`--aa`), their ratios give the
    noise floor, and a speedup below it is not distinguishable, whatever its interval says.

    Args:
        trials: rows of the trials table; only those with status ok enter.
        over: column that is compared, for example `device`, `recipe` or `precision`.
        reference: the value of that column that the others are divided by.
        level: confidence level of the interval.
        allow: columns in which the two sides may differ all the same, for example `cpu_threads` or `torch_version`.

    Returns:
        One row for each value of `over` and setting of the other axes: the axes, `speedup` (ratio of images a second),
        `low`, `high` (null under 3 pairs), `pairs`, `distinguishable` (the interval leaves out 1 and the speedup is
        beyond the noise floor; null without an interval), `differs`, and what one repeat and one process add to the
        scatter of the log ratio (`repeat_sd`, `process_sd`; null where it can't be told).

    Raises:
        ValueError: there is no such column, or no ok row with the reference value, or the rows may not be compared.
    """
    ok = comparable(trials, over, reference)
    matched, free = matched_axes(ok, over, allow)
    is_reference = ok[over] == reference
    pairs = ok[~is_reference].merge(ok[is_reference], on=[*PAIR, *matched], suffixes=("", "_reference"))
    if pairs.empty and not is_reference.all():
        raise ValueError(why_no_pair(ok[~is_reference], ok[is_reference], [*PAIR, *matched]))
    _refuse_unlike(pairs, allow)
    floor = None if over == "copy" else noise_floor(trials)
    rows = []
    for group, side in pairs.groupby([over, *matched], dropna=False, sort=True):
        ratio = side["images_per_second"] / side["images_per_second_reference"]
        # Identical cells do the same work, so the machine's drift can't move their ratio.
        interval = repeats_interval(ratio, side, level, drift_limit=0.0 if over == "copy" else DRIFT_LIMIT)
        parts = variance_components(ratio.tolist(), *_order(side))
        differs = [f"{c}: {side[c].iloc[0]} vs {side[c + '_reference'].iloc[0]}" for c in free if _unlike(side, c)]
        rows.append(
            {
                **dict(zip([over, *matched], group, strict=True)),
                "reference": reference,
                "speedup": interval.estimate,
                "low": interval.low,
                "high": interval.high,
                "pairs": interval.count,
                "distinguishable": distinguishable(interval, floor),
                "differs": "; ".join(differs),
                "repeat_sd": parts.repeat_sd,
                "process_sd": parts.process_sd,
            }
        )
    found = ["speedup", "low", "high", "pairs", "distinguishable", "differs", "repeat_sd", "process_sd"]
    return pd.DataFrame(rows, columns=[over, *matched, "reference", *found])


def comparable(trials: pd.DataFrame, over: str, reference: object) -> pd.DataFrame:
    """The ok rows, where `over` is a column that can be compared and one of its values is the reference.

    Raises:
        ValueError: it is not.
    """
    if over not in CELL_COLUMNS:
        raise ValueError(f"over must be one of {', '.join(CELL_COLUMNS)}, got {over!r}")
    ok = trials[trials["status"] == "ok"]
    values = sorted(ok[over].dropna().unique().tolist())
    if reference not in values:
        raise ValueError(f"no ok rows with {over} = {reference!r}; there are: {', '.join(map(str, values)) or 'none'}")
    return ok


def matched_axes(ok: pd.DataFrame, over: str, allow: Sequence[str]) -> tuple[list[str], list[str]]:
    """Axes that must be equal in a pair, and those that may differ: allowed, or because a recipe resolved them.

    An axis that takes several values for one recipe on one device was asked for, so it must be equal all the same.
    """
    axes = [c for c in CELL_COLUMNS if c != over and c not in allow]
    allowed = [c for c in CELL_COLUMNS if c in allow and c != over]
    if over == "num_workers" and (ok["num_workers"] * ok["cpu_threads"]).nunique() == 1:
        axes, allowed = [c for c in axes if c != "cpu_threads"], ["cpu_threads", *allowed]  # the cores, shared out
    if over not in ("device", "recipe"):
        return axes, allowed
    asked = [c for c in CELL_COLUMNS if c not in AXES]
    counts = ok.groupby(asked, dropna=False)[list(AXES)].nunique(dropna=False)
    free = [c for c in AXES if len(counts) == 0 or counts[c].max() <= 1]
    return [c for c in axes if c not in free], [*free, *(c for c in allowed if c not in free)]


def why_no_pair(side: pd.DataFrame, reference: pd.DataFrame, columns: Sequence[str]) -> str:
    """Which of the columns keep the two sides apart, with their values."""
    apart = [
        f"{c} ({', '.join(map(str, side[c].unique()))} against {', '.join(map(str, reference[c].unique()))})"
        for c in columns
        if not set(side[c]) & set(reference[c])
    ]
    reason = f"they differ in {'; '.join(apart)}" if apart else "no two of them agree in everything else"
    return f"no rows to compare: {reason}. Axes may be allowed to differ by name: allow=(...)"


def _refuse_unlike(pairs: pd.DataFrame, allow: Sequence[str]) -> None:
    for column in (c for c in ALIKE if c in pairs):
        known = pairs.dropna(subset=[column, f"{column}_reference"])
        unlike = known[known[column] != known[f"{column}_reference"]]
        if len(unlike) and column not in allow:
            one, other = unlike[column].iloc[0], unlike[f"{column}_reference"].iloc[0]
            raise ValueError(
                f"rows of unlike {column} ({one} and {other}) may not be compared: "
                f'measure them in one environment, or give allow=("{column}",)'
            )


def _unlike(side: pd.DataFrame, column: str) -> bool:
    return bool((side[column] != side[column + "_reference"]).any())


def repeats_interval(
    values: "pd.Series[float]", rows: pd.DataFrame, level: float, drift_limit: float = DRIFT_LIMIT
) -> Interval:
    """The geometric mean of `values`, one for each of `rows`, with its interval over repeats."""
    return log_mean_interval(values.tolist(), *_order(rows), level, drift_limit=drift_limit)


def _order(rows: pd.DataFrame) -> tuple[list[int], list[int]]:
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


def noise_floor(trials: pd.DataFrame) -> float | None:
    """How far apart identical cells came out, as a share (0.02 is 2 %); None where no identical cells were measured.

    The larger of the largest ratio seen and the root mean square of the half-widths of their intervals.
    """
    ok = trials[trials["status"] == "ok"]
    if not {0, 1} <= set(ok["copy"]):
        return None
    ratios = speedup(ok, over="copy", reference=0)
    logs = [abs(math.log(value)) for value in ratios["speedup"]]
    halves = [math.log(high / low) / 2 for low, high in zip(ratios["low"], ratios["high"], strict=True) if low == low]
    scatter = math.sqrt(sum(h**2 for h in halves) / len(halves)) if halves else 0.0
    return math.expm1(max(*logs, scatter))


def rates(trials: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """One row a cell: its axes, images a second with interval, epoch seconds, and how its trials ended."""
    rows = []
    for cell_id, of_cell in trials.groupby("cell_id", sort=False):
        ok = of_cell[of_cell["status"] == "ok"]
        interval = repeats_interval(ok["images_per_second"], ok, level) if len(ok) else None
        epoch_images = ok["epoch_seconds"] * ok["images_per_second"]
        energy = ok["energy_joules"] / ok["measured_images"] * epoch_images
        rows.append(
            {
                "cell_id": cell_id,
                **{c: of_cell[c].iloc[0] for c in CELL_COLUMNS},
                "images_per_second": interval.estimate if interval else None,
                "low": interval.low if interval else None,
                "high": interval.high if interval else None,
                "epoch_seconds": ok["epoch_seconds"].median() if len(ok) else None,
                "epoch_seconds_kind": ok["epoch_seconds_kind"].iloc[0] if len(ok) else None,
                "epoch_low": epoch_images.median() / interval.high if interval and interval.high else None,
                "epoch_high": epoch_images.median() / interval.low if interval and interval.low else None,
                "epoch_joules": energy.mean() if energy.notna().any() else None,
                "peak_memory_bytes": ok["peak_memory_bytes"].max() if len(ok) else None,
                "percent_of_limit": ok["percent_of_limit"].median() if len(ok) else None,
                "bottleneck": next(iter(ok["bottleneck"].mode()), None),
                "test_accuracy": ok["test_accuracy"].mean() if len(ok) else None,
                "statuses": ", ".join(f"{n} {status}" for status, n in of_cell["status"].value_counts().items()),
                "repeats": len(ok),
            }
        )
    numbers = dict.fromkeys(("images_per_second", "low", "high"), "float64")  # also where all of them are null
    return pd.DataFrame(rows).astype(numbers) if rows else pd.DataFrame()


def ratio(trials: pd.DataFrame, cell_id: str, reference_cell_id: str, *, level: float = 0.95) -> Interval | None:
    """The paired ratio of two cells' images a second, or None when no repeat holds both."""
    pairs = paired(trials, cell_id, reference_cell_id)
    return None if pairs.empty else repeats_interval(pairs["ratio"], pairs, level)


def paired(trials: pd.DataFrame, cell_id: str, reference_cell_id: str) -> pd.DataFrame:
    """The ok rows of two cells side by side, one row for each repeat that holds both.

    Returns:
        `run_id`, `hostname`, `repeat`, the `ratio` of images a second, and of each side `process`, `images_per_second`
        and `quality_flags` (the second's with `_reference` behind).
    """
    ok = trials.loc[trials["status"] == "ok", ["cell_id", *PAIR, "process", "images_per_second", "quality_flags"]]
    one, other = (ok[ok["cell_id"] == of].drop(columns="cell_id") for of in (cell_id, reference_cell_id))
    pairs = one.merge(other, on=PAIR, suffixes=("", "_reference"))
    return pairs.assign(ratio=pairs["images_per_second"] / pairs["images_per_second_reference"])


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


def lead(pairs: pd.DataFrame, *, level: float = 0.95) -> Lead:
    """What `paired` rows tell of their ratio. At least `MINIMUM_REPEATS` of them."""
    interval = repeats_interval(pairs["ratio"], pairs, level)
    assert interval.low is not None
    assert interval.high is not None
    values, order = pairs["ratio"].tolist(), _order(pairs)
    half = math.sqrt(interval.high / interval.low) - 1
    return Lead(
        interval=interval,
        half_width=half,
        parts=variance_components(values, *order),
        repeats_for=lambda target: repeats_needed(values, *order, target, level),
    )


def trial_seconds(trials: pd.DataFrame, cell_ids: Sequence[str]) -> dict[str, float]:
    """Median seconds that a trial of each cell took, from earlier rows; a cell never run gets the median of all."""
    ended = trials.dropna(subset=["started_at", "finished_at"])
    seconds = (ended["finished_at"] - ended["started_at"]).dt.total_seconds()
    if seconds.empty:
        return {}
    of_cell = seconds.groupby(ended["cell_id"]).median()
    return {cell_id: float(of_cell.get(cell_id, seconds.median())) for cell_id in cell_ids}
