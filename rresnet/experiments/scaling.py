"""How much do more workers bring? Which settings answer that, and how the answer is shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from rresnet import grid
from rresnet.cell import Cell, Device, UsageError
from rresnet.config import Settings
from rresnet.hardware import Hardware
from rresnet.terminal import number, percent, print_table, say

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["weak", "strong"]


@dataclass(frozen=True, kw_only=True)
class ScalingSettings(Settings):
    """The flags, and one more."""

    scaling: tuple[Kind, ...] = ("weak", "strong")
    """weak: each worker keeps the batch size; strong: the workers share it."""
    recipe: tuple[str, ...] = ("tuned",)
    """blog or tuned, as in compare. Steps run eagerly, as several workers must, unless --execution says otherwise."""
    batch_size: tuple[int, ...] = (64,)
    """Images per step of the single worker that the others are compared with."""
    num_workers: tuple[int, ...] = ()
    """Numbers of data-parallel workers to compare with one. Default: 2, 4 ... up to the machine's GPUs, or cores."""
    seconds: float = 3.0
    """Measured seconds of each trial."""
    repeats: int | None = 5
    """How many times each setting is measured."""
    processes: int = 5
    """Fresh trial processes that the repeats are spread over: one per repeat, because processes differ."""


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


def show(trials: "pd.DataFrame", console: Console, results: str) -> None:
    """Print the points, and what the model predicts for more workers."""
    from rresnet.analysis import scaling
    from rresnet.analysis.answer import ratio_text

    if not (trials["status"] == "ok").any():
        console.print("No trial ended ok, so there is nothing to compare: the trials table has the errors.")
        return
    points = scaling.points(trials)
    caption = (
        "Speedup: over the fewest workers, paired. Efficiency: speedup over the ratio of GPUs, or cores. "
        "95 % intervals."
    )
    rows = points.to_dict("records")
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
    say(console, scaling.predictions(points))


def _workers(row: Mapping[Any, Any]) -> str:
    where = f" on {row['num_nodes']} machines" if row["num_nodes"] > 1 else ""
    return f"{row['num_workers']} x batch {row['batch_size']}{where}"


def _share(row: Mapping[Any, Any]) -> str:
    share = row["communication_share"]
    return "" if row["num_workers"] == 1 else "not measured" if share != share else percent(share)
