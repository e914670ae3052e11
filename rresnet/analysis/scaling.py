"""What more workers bring: strong and weak scaling, what communication takes, and a prediction for many more."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize

from rresnet import naming
from rresnet.analysis import answer, comparison, frames, pairing, rates
from rresnet.analysis.statistics import Interval
from rresnet.cell import CELL_COLUMNS
from rresnet.terminal import counted, number, percent, significant

PREDICTED_WORKERS = (16, 64, 256, 1024)
LONGER = 0.25  # share by which a measured step may exceed the model's; beyond that a prediction promises too much
# The axes in which a point of a series may differ from its base: the number of workers, and what follows from it.
_SPREAD = ("batch_size", "num_workers", "num_nodes", "cpu_threads")


def points(trials: pd.DataFrame) -> pd.DataFrame:
    """Compare each measured number of workers with the fewest of its series.

    Args:
        trials: rows of a scaling run.

    Returns:
        One row per point: `kind` (weak or strong), `setting` (the base's name), `device`, `recipe`, `precision`,
        `base_batch_size`, `num_nodes`, `num_workers`, `batch_size` (each worker's), `images_per_second`, the paired
        `speedup` over the base with `low` and `high`, whether it is `distinguishable` from 1, `efficiency` (the speedup
        divided by the ratio of GPUs, or cores) with `efficiency_low` and `efficiency_high`, `step_seconds`,
        `communication_seconds` and `communication_share` (what exchanging gradients adds to a step). What was not
        measured is null.
    """
    trials = frames.with_all_axes(trials)
    ok = trials[(trials["status"] == "ok") & (trials["copy"] == 0)]
    cells: list[dict[Any, Any]] = rates.by_cell(ok).to_dict("records")
    floors = comparison.noise_floors(trials)
    timed = ok.reindex(columns=["cell_id", "step_seconds", "communication_seconds"])  # older tables lack the last
    seconds = timed.groupby("cell_id").median()
    axes = [axis for axis in CELL_COLUMNS if axis not in _SPREAD]
    rows = []
    for base in cells:
        series = [cell for cell in cells if all(frames.same(cell[axis], base[axis]) for axis in axes)]
        if _spread(base) != min(map(_spread, series)):
            continue
        alike = {axis: base[axis] for axis in ("num_workers", "num_nodes", "cpu_threads")}
        setting = naming.name(base, [cell | alike for cell in cells])
        for kind, of_kind in _kinds(base, series).items():
            for cell in of_kind:
                ratio = comparison.with_floor(pairing.ratio(ok, cell["cell_id"], base["cell_id"]), floors, cell, base)
                point = _point(base, cell, ratio, *seconds.loc[cell["cell_id"]])
                rows.append({"kind": kind, "setting": setting, **point})
    order = ["kind", "device", "recipe", "precision", "base_batch_size", "setting", "num_nodes", "num_workers"]
    found = pd.DataFrame(rows, columns=None if rows else order)
    return found.sort_values(order, ascending=[False, *[True] * 7]).reset_index(drop=True)


def _spread(cell: Mapping[Any, Any]) -> tuple[int, int]:
    return cell["num_workers"], cell["num_nodes"]


def summary(trials: pd.DataFrame) -> list[str]:
    """For each setting of more workers, say how it compares with the fewest, and what exchanging gradients takes."""
    trials = frames.with_all_axes(trials)
    measured = trials.loc[(trials["status"] == "ok") & (trials["copy"] == 0), ["num_workers", "num_nodes"]]
    if len(measured.drop_duplicates()) < 2:
        return []
    lines = []
    for (_, setting), series in points(trials).groupby(["kind", "setting"], sort=False):
        rows = series.to_dict("records")
        several_nodes = series["num_nodes"].nunique() > 1
        base = min(rows, key=_spread)
        others = [row for row in rows if row is not base]
        lines += [f"{setting}, {_comparison(row, base, several_nodes)}." for row in others]
    return lines


def _comparison(row: Mapping[Any, Any], base: Mapping[Any, Any], several_nodes: bool) -> str:
    """One point over the base, and the share of its steps that the exchange takes."""
    here, there = (f" on {counted(one['num_nodes'], 'machine')}" if several_nodes else "" for one in (row, base))
    each = f" of batch {row['batch_size']}" if row["batch_size"] != base["batch_size"] else ""
    who = f"{row['num_workers']} workers{each}{here} over {base['num_workers']}{there}"
    if pd.isna(row["speedup"]):
        told = f"{who}: never measured side by side"
    else:
        unlike = ", not distinguishable" if row["distinguishable"] is False else ""
        told = f"{who}: {answer.ratio_text(row['speedup'], row['low'], row['high'])} times the images/s{unlike}"
    share = row["communication_share"]
    return told if pd.isna(share) else f"{told}; exchanging gradients takes {percent(share)} of a step"


def _kinds(base: Mapping[Any, Any], series: list[dict[Any, Any]]) -> dict[str, list[dict[Any, Any]]]:
    """The cells of a series that keep each worker's batch size (weak), and those that keep the global one (strong)."""
    whole = base["batch_size"] * base["num_workers"]
    weak = [cell for cell in series if cell["batch_size"] == base["batch_size"]]
    sharing = [cell for cell in series if cell["batch_size"] * cell["num_workers"] == whole]
    strong = [cell for cell in sharing if cell is base or cell["num_workers"] != base["num_workers"]]
    return {"weak": weak, "strong": strong} if len(strong) > 1 else {"weak": weak}


def _point(
    base: Mapping[Any, Any],
    cell: Mapping[Any, Any],
    ratio: Interval | None,
    step_seconds: float,
    communication_seconds: float,
) -> dict[str, object]:
    return {
        **{axis: cell[axis] for axis in ("device", "recipe", "precision")},
        "base_batch_size": base["batch_size"],
        **{axis: cell[axis] for axis in ("num_nodes", "num_workers", "batch_size")},
        "images_per_second": cell["images_per_second"],
        **_efficiency(ratio, _units(cell) / _units(base)),
        "distinguishable": ratio and ratio.distinguishable,
        "step_seconds": step_seconds,
        "communication_seconds": communication_seconds,
        "communication_share": communication_seconds / step_seconds,
    }


def _units(cell: Mapping[Any, Any]) -> int:
    """What a cell occupies: GPUs, or cores."""
    return int(cell["num_workers"] * (1 if cell["device"] == "gpu" else cell["cpu_threads"]))


def _efficiency(ratio: Interval | None, units: float) -> dict[str, float | None]:
    bounds = (ratio.estimate, ratio.low, ratio.high) if ratio else (None, None, None)
    shares = [None if bound is None else bound / units for bound in bounds]
    names = ("speedup", "low", "high", "efficiency", "efficiency_low", "efficiency_high")
    return dict(zip(names, (*bounds, *shares), strict=True))


@dataclass(frozen=True, kw_only=True)
class Model:
    """Seconds of a weakly scaled step: computing, which stays the same, and a ring all-reduce, which grows.

    `computing + latency * (n - 1) + transfer * (n - 1) / n` for n workers: 2 (n - 1) messages one after another, each
    with one n-th of the gradients (Patarasuk and Yuan 2009). It assumes that each further worker has as much of a
    machine as those measured, that all links are alike, and that nothing else uses them.
    """

    computing: float
    latency: float
    transfer: float

    def step_seconds(self, workers: int) -> float:
        """Predicted seconds of a step of so many workers."""
        return self.computing + self.latency * (workers - 1) + self.transfer * (workers - 1) / workers

    def __str__(self) -> str:
        """The seconds of a step of n workers as a formula."""
        computing, latency, transfer = (f"{significant(seconds * 1e3)} ms" for seconds in astuple(self))
        return f"{computing} + {latency} x (n - 1) + {transfer} x (n - 1) / n"


def fit(series: pd.DataFrame) -> Model | None:
    """Fit the model to one weakly scaled series of `points`; None without a point of several workers.

    Computing is the mean of step seconds less communication seconds, over the points of several workers. Latency and
    transfer are the non-negative least-squares fit to the communication; a single number of workers can only tell the
    transfer.
    """
    several = series[(series["num_workers"] > 1) & series["communication_seconds"].notna()]
    if several.empty:
        return None
    workers = several["num_workers"].to_numpy(dtype=float)
    communication = several["communication_seconds"].to_numpy(dtype=float)
    terms = np.column_stack([workers - 1, (workers - 1) / workers])
    if several["num_workers"].nunique() == 1:
        terms[:, 0] = 0.0
    (latency, transfer), _ = optimize.nnls(terms, communication)
    computing = float((several["step_seconds"] - several["communication_seconds"]).mean())
    return Model(computing=computing, latency=float(latency), transfer=float(transfer))


def held_out_error(series: pd.DataFrame) -> float | None:
    """How far the largest measured point is from what the smaller ones predict, as a share of its step seconds.

    None with fewer than three points of several workers: two smaller ones are needed to tell latency from transfer.
    """
    largest = series["num_workers"].max()
    smaller, held_out = series[series["num_workers"] < largest], series[series["num_workers"] == largest]
    if (smaller["num_workers"] > 1).sum() < 2:
        return None
    model = fit(smaller)
    if model is None:
        return None
    measured = float(held_out["step_seconds"].iloc[0])
    return abs(model.step_seconds(int(largest)) - measured) / measured


def predictions(measured: pd.DataFrame) -> list[str]:
    """Predict, from `points`, the rates of more workers than were measured; marked as a prediction.

    No prediction is made, and the text says why, if any measured step, also that of a single worker, took much longer
    than the model says. A single worker's step may be shorter: it may have all threads of a machine, which several
    workers share.
    """
    lines = []
    weak = measured[measured["kind"] == "weak"]
    for (setting, size), series in weak.groupby(["setting", "base_batch_size"]):
        model = fit(series)
        if model is None:
            continue
        longer = series["step_seconds"] / series["num_workers"].map(model.step_seconds) - 1
        if longer.max() > LONGER:
            who = counted(int(series["num_workers"].iloc[int(longer.argmax())]), "worker")
            why = f"a step of {who} took {percent(longer.max())} longer than the model of the exchange says"
            lines.append(f"No prediction for {setting} per worker: {why}.")
            continue
        more = [n for n in PREDICTED_WORKERS if n > series["num_workers"].max()]
        predicted = ", ".join(f"{n} workers {number(n * int(str(size)) / model.step_seconds(n))}" for n in more)
        error = held_out_error(series)
        checked = (
            "not checked: that takes three numbers of workers above 1"
            if error is None
            else f"the largest measured is {percent(error, 1)} off what the smaller ones predict"
        )
        lines.append(
            f"Prediction, not measured, images/s for {setting} per worker: {predicted}. A "
            f"step of n > 1 workers takes {model} ({checked}), if all are like those measured and all links alike."
        )
    return lines
