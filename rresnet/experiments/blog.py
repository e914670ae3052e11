"""The blog's comparison, done again: ten epochs at batch 64 on each device, beside what the blog published."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from rresnet import grid
from rresnet.config import Cell, Device, Settings
from rresnet.hardware import Hardware
from rresnet.terminal import duration, say

if TYPE_CHECKING:
    import pandas as pd

EPOCHS = 10
PUBLISHED = {"A100": 72.0, "CPU": 2200.0}  # seconds of ten epochs, as the blog gives them; its CPU is not named


@dataclass(frozen=True, kw_only=True)
class BlogSettings(Settings):
    """The flags, and one more."""

    batch_size: tuple[int, ...] = (64,)
    """Images per step and worker. The blog's: 64."""
    dataset: str = "synthetic"
    """Default: random images with CIFAR-10's shape and count. For the real data: --dataset cifar10."""
    seconds: float = 3.0
    """Measured seconds of each trial that is projected."""
    repeats: int | None = 3
    """Times each setting is measured."""
    full: bool = False
    """Train the ten epochs on the CPU too, instead of projecting them (an hour or more)."""
    save_model: bool = True
    """--no-save-model does not keep the trained models' state_dicts in RESULTS_DIR/files."""


def cells(settings: Settings, devices: Sequence[Device], hardware: Hardware) -> list[Cell]:
    """The grid, with whole epochs on a GPU, and on a CPU where they were asked for."""
    whole = settings.epochs is not None or (isinstance(settings, BlogSettings) and settings.full)
    return [
        replace(cell, epochs=settings.epochs or EPOCHS) if whole or cell.device == "gpu" else cell
        for cell in grid.cells(settings, devices, hardware)
    ]


def show(trials: "pd.DataFrame", console: Console, results: str) -> None:
    """Print the answer, the ten epochs of each setting, and apart from them what the blog published."""
    from rresnet import analysis
    from rresnet.analysis import answer

    answer.findings(trials, console)
    epochs = int(trials["epochs"].max()) if trials["epochs"].notna().any() else EPOCHS
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("setting", f"{epochs} epochs", "", "images/s"):
        table.add_column(heading, justify="left" if heading in ("setting", "") else "right", no_wrap=True)
    rates = analysis.rates(trials).sort_values("epoch_seconds").to_dict("records")
    for cell in rates:
        if not cell["repeats"]:
            continue
        seconds = cell["epoch_seconds"] * epochs
        name = f"{cell['device']} {cell['recipe']} {cell['precision']} batch {cell['batch_size']}"
        table.add_row(name, duration(seconds), str(cell["epoch_seconds_kind"]), f"{cell['images_per_second']:,.0f}")
    table.add_section()
    for where, seconds in PUBLISHED.items():
        table.add_row(f"the blog's {where}", duration(seconds), "published", "not given", style="dim")
    console.print(table)
    ratio = PUBLISHED["CPU"] / PUBLISHED["A100"]
    say(
        console,
        f"Published: {EPOCHS} epochs on the blog's own machines, {int(ratio)} times apart. Not measured here, and not "
        "to be compared with the rows above: its data (text: CIFAR-10, code: MNIST) and its CPU are not known.",
        "dim",
    )
