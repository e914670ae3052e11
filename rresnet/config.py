"""What is measured: the settings of a run (which are also its command line) and the cells they ask for."""

import functools
import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

Device = Literal["cpu", "gpu"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Input = Literal["dataloader", "resident"]
Execution = Literal["eager", "graph", "compile"]
Pointwise = Literal["conv", "linear"]
Recipe = Literal["blog", "tuned"]

SCHEMA_VERSION = 1
AUTO: Literal["auto"] = "auto"
DEFAULT_REPEATS = 12
DEFAULT_TIMEOUT_SECONDS = 600.0
EPOCH_TIMEOUT_SECONDS = 3600.0


class UsageError(ValueError):
    """A request that is wrong or can't be met; the message says what was wrong, what is valid and what to do."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


def stable_hash(value: object) -> str:
    """16 hex digits of the SHA-256 of `value` as canonical JSON: the same on every machine and Python process."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One configuration to train: everything asked for that may change its speed. Its fields are table columns."""

    device: Device = field(metadata={"doc": "device kind trained on"})
    recipe: Recipe = field(metadata={"doc": "named settings that the axes below were resolved from"})
    precision: Precision = field(metadata={"doc": "arithmetic of convolutions and matrix products, by effect"})
    input: Input = field(metadata={"doc": "input path: per-image DataLoader, or data set resident on the device"})
    execution: Execution = field(metadata={"doc": "how the step runs: eager, one CUDA graph, or compiled"})
    channels_last: bool = field(metadata={"doc": "memory format NHWC instead of NCHW"})
    fused_optimizer: bool = field(metadata={"doc": "Adam's fused kernel instead of PyTorch's default"})
    pointwise: Pointwise = field(
        default="conv", metadata={"doc": "how 1x1 convolutions are computed: as convolutions, or as matrix products"}
    )
    model: str = field(metadata={"doc": "torchvision classification model"})
    dataset: str = field(metadata={"doc": "name, folder or Parquet file of the data set"})
    image_size: int = field(metadata={"doc": "height and width of the images, pixels"})
    batch_size: int = field(metadata={"doc": "images a step and worker"})
    num_workers: int = field(metadata={"doc": "data-parallel workers"})
    num_nodes: int = field(default=1, metadata={"doc": "machines that the workers are spread over evenly"})
    cpu_threads: int = field(metadata={"doc": "intra-op threads of each worker"})
    seed: int = field(metadata={"doc": "seed of weights and data order"})
    epochs: int | None = field(default=None, metadata={"doc": "whole epochs trained; null for a timed trial"})
    copy: int = field(default=0, metadata={"doc": "0; 1 for the second of two identical cells (A/A)"})

    def __post_init__(self) -> None:
        for name in ("image_size", "batch_size", "num_workers", "num_nodes", "cpu_threads"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        even = self.num_workers % self.num_nodes == 0
        _require(even, f"{self.num_workers} workers can't be spread evenly over {self.num_nodes} machines")

    @property
    def global_batch_size(self) -> int:
        """Images a step over all workers."""
        return self.batch_size * self.num_workers

    @property
    def workers_per_node(self) -> int:
        """Workers on each machine."""
        return self.num_workers // self.num_nodes

    @functools.cached_property
    def cell_id(self) -> str:
        """Stable hash of the configuration."""
        return stable_hash(asdict(self))

    def label(self) -> str:
        """Short human name: device, recipe, batch size, and what is unusual."""
        parts = [self.device, self.recipe, self.precision, f"batch {self.batch_size}"]
        if self.execution != "eager":
            parts.append(self.execution)
        if self.num_workers > 1:
            parts.append(f"{self.num_workers} workers")
        if self.num_nodes > 1:
            parts.append(f"on {self.num_nodes} machines")
        if self.copy:
            parts.append("again")
        return " ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One cell in one repeat, to be run in one of the run's trial processes."""

    cell: Cell
    repeat: int
    process: int

    @functools.cached_property
    def trial_id(self) -> str:
        """Stable hash of the configuration and the repeat."""
        return stable_hash({"cell": asdict(self.cell), "repeat": self.repeat})

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"cell": asdict(self.cell), "repeat": self.repeat, "process": self.process}

    def to_json(self) -> str:
        """One text, for the way through Tune, which deep-copies what it is given."""
        return json.dumps(self.to_dict())

    @staticmethod
    def from_json(text: str) -> "Trial":
        """The trial that `to_json` wrote."""
        values = json.loads(text)
        return Trial(cell=Cell(**values["cell"]), repeat=values["repeat"], process=values["process"])


@dataclass(frozen=True, kw_only=True)
class How:
    """How each trial of a run is to be measured."""

    seconds: float
    timeout_seconds: float | None = None  # None: the default of the trial's kind
    profile: bool = False
    save_model: bool = False

    def limit_seconds(self, cell: Cell) -> float:
        """Time limit of a trial of `cell`, seconds."""
        default = EPOCH_TIMEOUT_SECONDS * cell.epochs if cell.epochs else DEFAULT_TIMEOUT_SECONDS
        return self.timeout_seconds or default


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The flags, the same for every experiment. Axes take several values; the grid is their product."""

    device: tuple[Device, ...] = ()
    """Device kinds to measure. Default: every kind the cluster has."""
    recipe: tuple[Recipe, ...] = ("blog", "tuned")
    """Named settings: the blog's script as written, or the fastest known that learn the same."""
    batch_size: tuple[int, ...] | Literal["auto"] = (32, 64, 128)
    """Images a step and worker; auto finds the largest that fits and the fastest."""
    precision: tuple[Precision, ...] = ()
    """Override the recipes' precision."""
    input: tuple[Input, ...] = ()
    """Override the recipes' input path."""
    execution: tuple[Execution, ...] = ()
    """Override the recipes' way to run a step: eager, one CUDA graph (GPU), or torch.compile."""
    num_workers: tuple[int, ...] = (1,)
    """Data-parallel workers (several use Ray Train's worker group and DDP)."""
    num_nodes: tuple[int, ...] = ()
    """Machines that the workers are spread over. Default: as few as have a GPU, or a core, for each."""
    cpu_threads: int | None = None
    """Threads of each worker. Default: the machine's cores divided by its workers."""
    model: str = "resnet50"
    """torchvision classification model."""
    image_size: int = 32
    """Images are brought to this height and width, pixels."""
    dataset: str = "fashion-mnist-12k"
    """fashion-mnist-12k, fashion-mnist, mnist, cifar10, synthetic, an image folder, or a .parquet file."""
    data_dir: Path | None = None
    """Folder with already downloaded files of a named data set."""
    repeats: int | None = None
    """Times each cell is measured. Default: 12, or 1 with --epochs."""
    processes: int = 3
    """Fresh trial processes that the repeats are spread over."""
    seconds: float = 1.0
    """Measured seconds of each trial."""
    epochs: int | None = None
    """Train whole epochs instead, and evaluate after each."""
    target_interval: float | None = None
    """Go on with more repeats until each speedup's interval is at most so wide to each side (0.02 is 2 %)."""
    max_minutes: float = 30.0
    """With --target-interval: start no more repeats after so many minutes."""
    aa: bool = False
    """Measure each cell against an identical copy of itself (A/A): the noise floor."""
    seed: int = 42
    """Seed of weights, data order and the order of cells."""
    timeout_seconds: float | None = None
    """A trial that takes longer is ended. Default: 600, or 3600 an epoch with --epochs."""
    results_dir: str = "results"
    """Folder of the Parquet tables, or a URL in object storage: s3://BUCKET/FOLDER, gs://BUCKET/FOLDER."""
    name: str | None = None
    """Name of the run. Default: the experiment's."""
    address: str | None = None
    """Ray cluster to join: "auto" or host:port. Default: start Ray on this machine alone."""
    machines: int | None = None
    """With --address: machines that measure side by side; an autoscaler is asked for those that lack. Default: all."""
    accelerator_type: str | None = None
    """With --address: only machines with this accelerator, by Ray's name of it, for example A100."""
    wait_seconds: float = 900.0
    """With --address: how long machines that an autoscaler starts are waited for."""
    fresh: bool = False
    """Start a new run instead of continuing an unfinished one of the same name and configuration."""
    advice: bool = True
    """Say with each quality flag what to do about it."""
    retry: Literal["failed", "all"] | None = None
    """Run the newest run's trials again, also where it is complete: those that failed, or all of them."""
    mix_environments: bool = False
    """Continue a run that was begun with other software or on another machine."""
    profile: bool = False
    """Keep a PyTorch profiler trace of each cell in RESULTS_DIR/files, taken outside the measured windows."""
    save_model: bool = False
    """With --epochs: keep each trained model's state_dict in RESULTS_DIR/files."""
    dry_run: bool = False
    """Print the planned trials and stop."""

    def __post_init__(self) -> None:
        auto = self.batch_size == AUTO
        for name in ("recipe", "batch_size", "num_workers"):
            _require(bool(getattr(self, name)), f"--{_flag(name)} needs at least one value")
        for name in (
            "device",
            "recipe",
            *(() if auto else ("batch_size",)),
            "precision",
            "input",
            "execution",
            "num_workers",
            "num_nodes",
        ):
            values = getattr(self, name)
            twice = sorted({str(v) for v in values if values.count(v) > 1})
            _require(not twice, f"--{_flag(name)} names {', '.join(twice)} twice: give each value once")
        for name in ("num_workers", "num_nodes", *(() if auto else ("batch_size",))):
            for value in getattr(self, name):
                _require(value >= 1, f"--{_flag(name)} must be at least 1, got {value}")
        for name in ("cpu_threads", "image_size", "repeats", "processes", "epochs", "machines"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"--{_flag(name)} must be at least 1, got {value}")
        units = {
            "seconds": "seconds",
            "timeout_seconds": "seconds",
            "wait_seconds": "seconds",
            "max_minutes": "minutes",
        }
        for name, unit in units.items():
            value = getattr(self, name)
            valid = value is None or 0 < value < float("inf")
            _require(valid, f"--{_flag(name)} must be a number of {unit} above 0, got {value}")
        target = self.target_interval
        _require(
            target is None or 0 < target < 1,
            f"--target-interval must be between 0 and 1 (0.02 is 2 %), got {target}",
        )
        _require(0 <= self.seed < 2**63, f"--seed must be between 0 and 2**63 - 1, got {self.seed}")
        named = self.name is None or (self.name != "" and all(c.isalnum() or c in "-_." for c in self.name))
        _require(
            named and not (self.name or "").startswith("."),
            f"--name takes letters, digits and - _ . only, got {self.name!r}",
        )
        _require(
            bool(str(self.results_dir)),
            "--results-dir must be a folder or a URL such as s3://BUCKET/FOLDER, got nothing",
        )
        _require(bool(self.dataset), "--dataset must be a name, a folder or a .parquet file, got nothing")
        _require(
            not (self.fresh and self.retry), "--fresh starts a new run and --retry goes on with one: give one of them"
        )

    @property
    def request_id(self) -> str:
        """Hash of what is asked for, without where it goes and how it is told."""
        apart = {
            "profile",
            "save_model",
            "results_dir",
            "fresh",
            "advice",
            "retry",
            "mix_environments",
            "dry_run",
            "address",
            "machines",
            "accelerator_type",
            "wait_seconds",
            "max_minutes",
        }
        return stable_hash({k: str(v) for k, v in asdict(self).items() if k not in apart})

    @property
    def repeats_planned(self) -> int:
        """Repeats, with the default resolved."""
        return self.repeats or (1 if self.epochs else DEFAULT_REPEATS)


def _flag(name: str) -> str:
    return name.replace("_", "-")


CELL_COLUMNS = tuple(f.name for f in fields(Cell))
DEVICES: tuple[Device, ...] = get_args(Device)
