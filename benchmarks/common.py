"""Cells measured in this process, without Ray: what the benchmarks of the measurement itself share."""

import argparse
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace

import pandas as pd
import torch

from rresnet import data, grid, hardware
from rresnet.analysis.statistics import in_order, log_mean_interval
from rresnet.cell import Cell, Device
from rresnet.data import ImageData
from rresnet.tables.measurement import TRIALS, Measurement
from rresnet.training.step import Eager
from rresnet.training.train import visit
from rresnet.training.workbench import Workbench

COLUMNS = [field.name for field in TRIALS]


def arguments(description: str | None, **defaults: float | str) -> argparse.Namespace:
    """Command-line options by their defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    return parser.parse_args()


def cell(**changes: object) -> Cell:
    """A cell that a slow machine steps through in a tenth of a second."""
    values: dict[str, object] = {
        "device": "cpu",
        "recipe": "tuned",
        "precision": "fp32",
        "input": "resident",
        "execution": "eager",
        "channels_last": True,
        "fused_optimizer": True,
        "pointwise": "linear",
        "small_maps": "linear",
        "model": "resnet18",
        "dataset": "fashion-mnist-12k",
        "image_size": 32,
        "batch_size": 16,
        "num_workers": 1,
        "cpu_threads": hardware.probe().cpu_cores,
        "seed": 42,
    }
    return Cell(**{**values, **changes})  # type: ignore[arg-type]


def axes_of(recipe: str, device: Device, **changes: object) -> dict[str, object]:
    """What a recipe is on this machine's device, with changes: of a `cell`."""
    axes = replace(grid.recipe(recipe)(device, hardware.probe()), **changes)  # type: ignore[arg-type]
    if axes.execution != ("graph" if device == "gpu" else "eager"):
        axes = replace(axes, kernels="pytorch")
    return {"device": device, "recipe": recipe, **vars(axes)}


def images() -> ImageData:
    return data.load("fashion-mnist-12k", image_size=32, data_dir=None, seed=42)


def workbench(one: Cell, data: ImageData | None = None) -> Workbench:
    """The cell on its device, not visited yet."""
    device = torch.device("cuda" if one.device == "gpu" else "cpu")
    return Workbench(cell=one, data=data or images(), device=device)


def workbenches(cells: Sequence[Cell]) -> list[Workbench]:
    """The cells, hot: each has been visited once."""
    shared = images()
    benches = [workbench(one, shared) for one in cells]
    for bench in benches:
        measure(bench, 0.1)
    return benches


def measure(bench: Workbench, seconds: float) -> Measurement:
    """One visit's measurement."""
    return visit(bench, seconds=seconds, startup_seconds=0.0, progress=lambda images_per_second: None).measurement


def row(bench: Workbench, seconds: float, **key: object) -> dict[str, object]:
    """One visit as a row of the trials table."""
    where = {"hostname": "here", "cell_id": bench.cell.cell_id, "process": 0}
    return {**asdict(bench.cell), **where, **key, **vars(measure(bench, seconds))}


def run(
    benches: Sequence[Workbench], *, repeats: int, seconds: float, name: str = "run", first: int = 0, process: int = 0
) -> pd.DataFrame:
    """Rows of a trials table: every cell once in each repeat, in shuffled order, as a run measures them.

    `first` and `process` number the repeats of benches that were built anew, which stand for a fresh process.
    """
    rows = []
    for repeat in range(first, first + repeats):
        order = list(benches)
        random.Random(f"{name}/{repeat}").shuffle(order)
        rows += [row(bench, seconds, run_id=name, repeat=repeat, process=process) for bench in order]
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


class Slowed(Eager):
    """A bench's step with extra work of known cost: beside a `share` of the steps another is taken and not counted.

    Each has a batch of its own, as the counted ones have.
    """

    def __init__(self, bench: Workbench, share: float) -> None:
        self.step, self.batches, self.share, self.owed = bench.train_step, bench.batches, share, 0.0

    def __call__(self, *raw: torch.Tensor) -> torch.Tensor:
        """Take the step, and those that are owed."""
        self.owed += self.share
        while self.owed >= 1:
            self.owed -= 1
            self.step(*next(self.batches))
        return self.step(*raw)


def busy_process(on_seconds: float = 3600.0, off_seconds: float = 0.0) -> subprocess.Popen[bytes]:
    """A process that keeps a core busy, coming and going."""
    code = (
        "import time, sys\n"
        f"while True:\n end = time.time() + {on_seconds}\n while time.time() < end: pass\n time.sleep({off_seconds})"
    )
    return subprocess.Popen([sys.executable, "-c", code])


def verdict(what: str, passed: bool) -> int:
    """Print whether a target was met; the exit code."""
    print(f"{'met' if passed else 'MISSED'}: {what}")
    return 0 if passed else 1


def agrees(what: str, ratios: Sequence[float], within: float) -> int:
    """Judge paired ratios of what should be one: the mean is that near to 1, or its interval holds 1."""
    found = log_mean_interval(in_order(ratios), drift_limit=0.0)
    assert found.low is not None
    assert found.high is not None
    told = f"{what}: {found.estimate:.3f} ({found.low:.3f} - {found.high:.3f})"
    return verdict(told, abs(found.estimate - 1) <= within or found.low <= 1 <= found.high)
