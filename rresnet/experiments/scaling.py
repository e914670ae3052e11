"""How much do more workers bring? Strong and weak scaling, what communication takes, and a prediction for many more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from rresnet import grid
from rresnet.cell import CELL_COLUMNS, Cell, Device, UsageError
from rresnet.config import Settings
from rresnet.hardware import Hardware
from rresnet.terminal import number, percent, print_table, say

if TYPE_CHECKING:
    import pandas as pd

    from rresnet.analysis.statistics import Interval

Kind = Literal["weak", "strong"]
PREDICTED_WORKERS = (16, 64, 256, 1024)
# What a point of a series may have unlike its base: how many workers there are, and what follows from that.
_SPREAD = ("batch_size", "num_workers", "num_nodes", "cpu_threads")


@dataclass(frozen=True, kw_only=True)
class ScalingSettings(Settings):
    """The flags, and one more."""

    scaling: tuple[Kind, ...] = ("weak", "strong")
    """weak: each worker keeps the batch size; strong: the workers share it."""
    recipe: tuple[str, ...] = ("tuned",)
    """blog or tuned, as in compare. Steps run eagerly, as several workers need, unless --execution says otherwise."""
    batch_size: tuple[int, ...] = (64,)
    """Images per step of the single worker that the others are compared with."""
    num_workers: tuple[int, ...] = ()
    """Data-parallel workers, besides the single one. Default: 2, 4 ... up to the machine's GPUs, or cores."""
    seconds: float = 3.0
    """Measured seconds of each trial."""
    repeats: int | None = 5
    """Times each setting is measured."""
    processes: int = 5
    """Fresh trial processes that the repeats are spread over. One per repeat: what differs between processes counts."""


def worker_counts(device: Device, hardware: Hardware) -> tuple[int, ...]:
    """1, 2, 4 ... up to the machine's GPUs, or cores."""
    most = max(1, hardware.gpu_count if device == "gpu" else hardware.cpu_cores)
    return tuple(2**k for k in range(most.bit_length()) if 2**k <= most)


def cells(settings: Settings, devices: Sequence[Device], hardware: Hardware) -> list[Cell]:
    """One worker, and for each kind of scaling the others; `--num-workers` and `--num-nodes` say how many, and where.

    Raises UsageError where there is nothing to compare, or a strong scaling's batch can't be shared out.
    """
    assert isinstance(settings, ScalingSettings)
    if set(settings.num_workers) == {1}:
        raise UsageError("--num-workers 1 is what the others are compared with: give others, such as --num-workers 2 4")
    kinds = settings.scaling
    given = replace(settings, execution=settings.execution or ("eager",))
    found: dict[str, Cell] = {}
    for device in devices:
        counts = settings.num_workers or worker_counts(device, hardware)
        for batch_size in settings.batch_size:
            for workers in sorted({1, *counts}):
                if "strong" in kinds and batch_size % workers:
                    raise UsageError(
                        f"--batch-size {batch_size} can't be shared out among {workers} workers: give a multiple of "
                        f"{workers}, or --scaling weak"
                    )
                sizes = {batch_size // workers if kind == "strong" else batch_size for kind in kinds}
                nodes = settings.num_nodes if workers > 1 else (1,)
                of_count = replace(
                    given, num_workers=(workers,), num_nodes=nodes, batch_size=tuple(sorted(sizes, reverse=True))
                )
                found |= {cell.cell_id: cell for cell in grid.cells(of_count, [device], hardware)}
    return list(found.values())


def points(trials: "pd.DataFrame") -> "pd.DataFrame":
    """Each measured number of workers against the fewest of its series.

    Args:
        trials: rows of a scaling run.

    Returns:
        One row a point: `kind` (weak or strong), `setting` (the base's name), `device`, `recipe`, `precision`,
        `base_batch_size`, `num_nodes`, `num_workers`, `batch_size` (each worker's), `images_per_second`, the paired
        `speedup` over the base with `low` and `high`, `efficiency` (the speedup over how many times as many GPUs, or
        cores, there are) with `efficiency_low` and `efficiency_high`, `step_seconds`, `communication_seconds` and
        `communication_share` (what exchanging gradients adds to a step). Null where it was not measured.
    """
    import pandas as pd

    from rresnet.analysis import answer, frames, rates

    ok = trials[(trials["status"] == "ok") & (trials["copy"] == 0)]
    cells: list[dict[Any, Any]] = rates.by_cell(ok).to_dict("records")
    seconds = ok.groupby("cell_id")[["step_seconds", "communication_seconds"]].median()
    axes = [axis for axis in CELL_COLUMNS if axis not in _SPREAD]
    rows = []
    for base in cells:
        series = [cell for cell in cells if all(frames.same(cell[axis], base[axis]) for axis in axes)]
        if base["num_workers"] != min(cell["num_workers"] for cell in series):
            continue
        setting = answer.name(base, [one for one in cells if one["num_workers"] == base["num_workers"]])
        for kind, of_kind in _kinds(base, series).items():
            rows += [
                {"kind": kind, "setting": setting, **_point(ok, base, cell, *seconds.loc[cell["cell_id"]])}
                for cell in of_kind
            ]
    order = ["kind", "device", "recipe", "precision", "base_batch_size", "setting", "num_nodes", "num_workers"]
    return pd.DataFrame(rows).sort_values(order, ascending=[False, *[True] * 7]).reset_index(drop=True)


def _kinds(base: Mapping[Any, Any], series: list[dict[Any, Any]]) -> dict[Kind, list[dict[Any, Any]]]:
    """The cells of a series that keep each worker's batch size, and those that keep the whole's."""
    whole = base["batch_size"] * base["num_workers"]
    weak = [cell for cell in series if cell["batch_size"] == base["batch_size"]]
    strong = [cell for cell in series if cell["batch_size"] * cell["num_workers"] == whole]
    return {"weak": weak, "strong": strong} if len(strong) > 1 else {"weak": weak}


def _point(
    ok: "pd.DataFrame",
    base: Mapping[Any, Any],
    cell: Mapping[Any, Any],
    step_seconds: float,
    communication_seconds: float,
) -> dict[str, object]:
    from rresnet.analysis import pairing

    ratio = pairing.ratio(ok, cell["cell_id"], base["cell_id"])
    return {
        **{axis: cell[axis] for axis in ("device", "recipe", "precision")},
        "base_batch_size": base["batch_size"],
        **{axis: cell[axis] for axis in ("num_nodes", "num_workers", "batch_size")},
        "images_per_second": cell["images_per_second"],
        **_efficiency(ratio, _units(cell) / _units(base)),
        "step_seconds": step_seconds,
        "communication_seconds": communication_seconds,
        "communication_share": communication_seconds / step_seconds,
    }


def _units(cell: Mapping[Any, Any]) -> int:
    """What a cell occupies: GPUs, or cores."""
    return int(cell["num_workers"] * (1 if cell["device"] == "gpu" else cell["cpu_threads"]))


def _efficiency(ratio: "Interval | None", units: float) -> dict[str, float | None]:
    bounds = (ratio.estimate, ratio.low, ratio.high) if ratio else (None, None, None)
    shares = [None if bound is None else bound / units for bound in bounds]
    names = ("speedup", "low", "high", "efficiency", "efficiency_low", "efficiency_high")
    return dict(zip(names, (*bounds, *shares), strict=True))


@dataclass(frozen=True, kw_only=True)
class Model:
    """Seconds of a weakly scaled step: computing, which stays, and an all-reduce in a ring, which grows.

    `computing + latency * (n - 1) + transfer * (n - 1) / n` for n workers: 2 (n - 1) messages one after another, each
    of the n-th part of the gradients (Patarasuk and Yuan 2009). It assumes that each further worker has as much of a
    machine as those measured, that all links are alike, and that nothing else shares them.
    """

    computing: float
    latency: float
    transfer: float

    def step_seconds(self, workers: int) -> float:
        """Predicted seconds of a step of so many workers."""
        return self.computing + self.latency * (workers - 1) + self.transfer * (workers - 1) / workers


def fit(series: "pd.DataFrame") -> Model | None:
    """The model of one weakly scaled series of `points`; None without a point of several workers.

    Computing is the mean of what the measured communication leaves of a step of several workers; latency and transfer
    are the non-negative least-squares fit of the communication (one number of workers tells one of them: the transfer).
    """
    import numpy as np
    from scipy import optimize

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


def held_out_error(series: "pd.DataFrame") -> float | None:
    """How far the largest measured point is from its prediction from the smaller ones, as a share of its step seconds.

    None under three points with several workers: two smaller ones are needed to tell latency from transfer.
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


def show(trials: "pd.DataFrame", console: Console, results: str) -> None:
    """Print the points, and what the model predicts for more workers."""
    from rresnet.analysis.answer import ratio_text

    if not (trials["status"] == "ok").any():
        console.print("No trial ended ok, so there is nothing to compare: the trials table has the errors.")
        return
    found = points(trials)
    caption = (
        "Speedup over the fewest workers, paired; efficiency: over how many times the GPUs, or cores. 95 % intervals."
    )
    rows = found.to_dict("records")
    columns = {
        "scaling": [row["kind"] for row in rows],
        "setting": [row["setting"] for row in rows],
        "workers": [_workers(row) for row in rows],
        "images/s": [number(row["images_per_second"]) for row in rows],
        "speedup": [ratio_text(row["speedup"], row["low"], row["high"]) for row in rows],
        "efficiency": [ratio_text(row["efficiency"], row["efficiency_low"], row["efficiency_high"]) for row in rows],
        "communication": [_share(row) for row in rows],
    }
    words = ("scaling", "setting")
    print_table(console, columns, caption=caption, left=words, broken="setting", left_out=("images/s", "speedup"))
    for line in predictions(found):
        say(console, line)


def _workers(row: Mapping[Any, Any]) -> str:
    where = f" on {row['num_nodes']} machines" if row["num_nodes"] > 1 else ""
    return f"{row['num_workers']} x batch {row['batch_size']}{where}"


def _share(row: Mapping[Any, Any]) -> str:
    share = row["communication_share"]
    return "" if row["num_workers"] == 1 else "not measured" if share != share else percent(share)


def predictions(found: "pd.DataFrame") -> list[str]:
    """What the model says of more workers than were measured, marked as a prediction."""
    lines = []
    weak = found[found["kind"] == "weak"]
    for (setting, size), series in weak.groupby(["setting", "base_batch_size"]):
        model = fit(series)
        if model is None:
            continue
        largest = int(series["num_workers"].max())
        rates = ", ".join(
            f"{n} workers {number(n * int(str(size)) / model.step_seconds(n))}"
            for n in PREDICTED_WORKERS
            if n > largest
        )
        error = held_out_error(series)
        checked = (
            "not checked: that takes three numbers of several workers"
            if error is None
            else f"the largest measured is {percent(error, 1)} from what the smaller ones predict"
        )
        terms = " + ".join(
            f"{seconds * 1e3:.3g} ms{of}"
            for seconds, of in (
                (model.computing, ""),
                (model.latency, " x (n - 1)"),
                (model.transfer, " x (n - 1) / n"),
            )
        )
        lines.append(
            f"Prediction, not measured, images/s of {setting} per worker: {rates}. A "
            f"step of n workers takes {terms} ({checked}), each worker like those measured, all links alike."
        )
    return lines
