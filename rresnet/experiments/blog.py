"""The blog's comparison repeated: ten epochs at batch 64 on each device, beside what the blog published."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rresnet import grid, naming
from rresnet.cell import Cell, Device
from rresnet.config import Settings
from rresnet.hardware import Hardware
from rresnet.terminal import duration, print_table, say

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
    """How many times each setting is measured."""
    full: bool = False
    """Train the ten epochs on the CPU too, instead of projecting them (an hour or more)."""
    save_model: bool = True
    """--no-save-model: do not keep the trained models' state_dicts in RESULTS_DIR/files."""


def cells(settings: Settings, devices: Sequence[Device], hardware: Hardware) -> list[Cell]:
    """The grid, with whole epochs on a GPU, and also on a CPU if they were asked for."""
    assert isinstance(settings, BlogSettings)
    whole = settings.epochs is not None or settings.full
    return [
        replace(cell, epochs=settings.epochs or EPOCHS) if whole or cell.device == "gpu" else cell
        for cell in grid.cells(settings, devices, hardware)
    ]


def show(trials: "pd.DataFrame", console: Console, results: str) -> None:
    """Print the answer, the ten epochs of each setting, and, apart from them, what the blog published."""
    from rresnet.analysis import answer, rates
    from rresnet.experiments import printing

    printing.findings(trials, console)
    epochs = int(trials["epochs"].max()) if trials["epochs"].notna().any() else EPOCHS
    cells: list[dict[Any, Any]] = rates.by_cell(trials).sort_values("epoch_seconds").to_dict("records")
    rows = [
        (
            naming.name(cell, cells),
            answer.epochs(cell, epochs),
            cell["epoch_seconds_kind"],
            answer.rate(cell),
        )
        for cell in cells
        if cell["repeats"]
    ]
    of = "" if epochs == EPOCHS else f", {EPOCHS} epochs"
    rows += [(f"the blog's {where}", duration(s), f"published{of}", "not given") for where, s in PUBLISHED.items()]
    headings = ("setting", f"{epochs} epochs", "", "images/s")
    columns = dict(zip(headings, map(list, zip(*rows, strict=True)), strict=True))
    print_table(console, columns, left=("setting", ""), broken="setting")
    ratio = PUBLISHED["CPU"] / PUBLISHED["A100"]
    say(
        console,
        f"Published: {EPOCHS} epochs on the blog's own machines, {int(ratio)} times apart. Not measured here, and not "
        "comparable with the rows above: its data (CIFAR-10 in the text, MNIST in the code) and its CPU are not known.",
        "dim",
    )
