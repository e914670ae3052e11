"""A cell (one configuration to train) and its axes, described by metadata; errors and hashes that all layers use."""

import difflib
import functools
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields
from fractions import Fraction
from typing import Any, Literal, NamedTuple, get_args

Device = Literal["cpu", "gpu"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Input = Literal["dataloader", "resident"]
Execution = Literal["eager", "graph", "compile"]
Convolution = Literal["conv", "linear"]
Kernels = Literal["pytorch", "fused"]


class UsageError(ValueError):
    """A request that is wrong or can't be met; the message says what was wrong, what is valid and what to do."""


def first_line(error: object) -> str:
    """The first line of an error's text, or the name of its type if it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


class Must(NamedTuple):
    """A requirement on a value: its wording in error messages, and the test."""

    what: str
    holds: Callable[[Any], bool]

    def check(self, name: str, value: object) -> None:
        """Raise UsageError if the value does not meet the requirement."""
        if not self.holds(value):
            raise UsageError(f"{name} {self.what}, got {value!r}")


AT_LEAST_1 = Must("must be at least 1", lambda value: value >= 1)


def nearest(word: str, valid: Iterable[str]) -> str:
    """Return `did you mean VALID? ` if some valid word is close to the wrong one, else an empty string."""
    close = difflib.get_close_matches(word, list(valid), n=1)
    return f"did you mean {close[0]}? " if close else ""


def stable_hash(value: object) -> str:
    """Return 16 hex digits of the SHA-256 of `value` as canonical JSON: the same on every machine, in every process."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def axis(doc: str, default: Any = MISSING, *, flag: str = "", must: Must | None = None) -> Any:
    """Define an axis: a field of a cell, and a column of the tables.

    Args:
        doc: what the column holds, and in which unit.
        default: for an axis that a recipe decides, its value in the blog's script, and in rows older than the axis.
        flag: help of the flag that takes values of the axis; without it there is no such flag.
        must: what a value must be.
    """
    return field(default=default, metadata={"doc": doc, "flag": flag, "must": must})


@dataclass(frozen=True, kw_only=True)
class Axes:
    """How a cell is computed: what a recipe decides and a flag may override. The defaults are the blog's script."""

    precision: Precision = axis(
        "effective arithmetic of convolutions and matrix products", "fp32", flag="Override the recipes' precision."
    )
    input: Input = axis(
        "input path: per-image DataLoader, or data set resident on the device",
        "dataloader",
        flag="Override the recipes' input path.",
    )
    execution: Execution = axis(
        "how the step runs: eager, one CUDA graph, or compiled",
        "eager",
        flag="Override the recipes' way to run a step: eager, one CUDA graph (GPU), or torch.compile.",
    )
    channels_last: bool = axis("memory format NHWC instead of NCHW", False)
    fused_optimizer: bool = axis("Adam's fused kernel instead of PyTorch's default", False)
    pointwise: Convolution = axis("how 1x1 convolutions are computed: as convolutions, or as matrix products", "conv")
    small_maps: Convolution = axis("how convolutions over maps of few pixels are computed, likewise", "conv")
    cudnn_benchmark: bool = axis("whether cuDNN times its kernels for each shape and takes the fastest (GPU)", False)
    kernels: Kernels = axis(
        "whose kernels: PyTorch's alone, or also our own, which do several operations in one",
        "pytorch",
        flag="Override the recipes' kernels: PyTorch's alone, or also our own, which do several operations in one.",
    )


@dataclass(frozen=True, kw_only=True)
class _Named:
    device: Device = axis("device kind trained on")
    recipe: str = axis("named settings that the axes below were resolved from")


@dataclass(frozen=True, kw_only=True)
class Cell(Axes, _Named):  # in this order, because fields are collected in reverse: `_Named` first, as in the tables
    """One configuration to train: everything asked for that may change its speed. Its fields are table columns."""

    model: str = axis("torchvision classification model, or package.module:function")
    dataset: str = axis("name, folder or Parquet file of the data set")
    image_size: int = axis("height and width of the images, pixels", must=AT_LEAST_1)
    batch_size: int = axis("images per step and worker", must=AT_LEAST_1)
    num_workers: int = axis("data-parallel workers", must=AT_LEAST_1)
    num_nodes: int = axis("machines that the workers are spread over evenly", 1, must=AT_LEAST_1)
    cpu_threads: int = axis("intra-op threads of each worker", must=AT_LEAST_1)
    seed: int = axis("seed of weights and data order")
    epochs: int | None = axis("whole epochs trained; null for a timed trial", None)
    copy: int = axis("0; 1 for the second of two identical cells (A/A)", 0)

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.metadata["must"]:
                f.metadata["must"].check(f.name, getattr(self, f.name))
        if self.num_workers % self.num_nodes:
            raise UsageError(f"{self.num_workers} workers can't be spread evenly over {self.num_nodes} machines")

    @property
    def global_batch_size(self) -> int:
        """Images per step over all workers."""
        return self.batch_size * self.num_workers

    @property
    def workers_per_node(self) -> int:
        """Workers on each machine."""
        return self.num_workers // self.num_nodes

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, without `LATER` axes at their defaults, so that older rows keep their ids."""
        return {k: v for k, v in asdict(self).items() if k not in LATER or v != getattr(Axes, k)}

    @functools.cached_property
    def cell_id(self) -> str:
        """Stable hash of the configuration."""
        return stable_hash(self.to_dict())

    def label(self) -> str:
        """Short name by itself, as for files: device, recipe, precision, batch size, and what is unusual."""
        parts = [self.device, self.recipe, self.precision, f"batch {self.batch_size}"]
        if self.execution != "eager":
            parts.append(self.execution)
        parts += [f"{k.replace('_', ' ')} {v}" for k, v in self.to_dict().items() if k in LATER and k in FLAGGED]
        if self.num_workers > 1:
            parts.append(f"{self.num_workers} workers")
        if self.num_nodes > 1:
            parts.append(f"on {self.num_nodes} machines")
        if self.copy:
            parts.append("again")
        return " ".join(parts)


def share_cores(cells: Iterable[tuple[int, int, int]]) -> bool:
    """Whether the threads of each cell, given as its `CORES`, are its share of all cores of its machines.

    That is how `grid` hands out cores: rounded down, so the products of workers and threads may differ.
    """
    kinds = set(cells)
    cores = max((Fraction(workers * threads, nodes) for workers, nodes, threads in kinds), default=Fraction(0))
    return all(threads == cores * nodes // workers for workers, nodes, threads in kinds)


CORES = ("num_workers", "num_nodes", "cpu_threads")  # how a cell uses the cores of its machines
CELL_COLUMNS = tuple(f.name for f in fields(Cell))
AXES = tuple(f.name for f in fields(Axes))
FLAGGED = tuple(f.name for f in fields(Axes) if f.metadata["flag"])  # axes that a flag overrides
DEVICES: tuple[Device, ...] = get_args(Device)
# Axes that the first tables did not have.
LATER = frozenset(AXES) - {"precision", "input", "execution", "channels_last", "fused_optimizer", "pointwise"}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One cell in one repeat, to be run in one of the run's trial processes."""

    cell: Cell
    repeat: int
    process: int

    @functools.cached_property
    def trial_id(self) -> str:
        """Stable hash of the configuration and the repeat."""
        return stable_hash({"cell": self.cell.to_dict(), "repeat": self.repeat})

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"cell": self.cell.to_dict(), "repeat": self.repeat, "process": self.process}
