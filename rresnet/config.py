"""The settings of a run, which are also its command line, and how each of its trials is to be measured."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import GenericAlias
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar, get_type_hints

from rresnet.cell import AT_LEAST_1, Axes, Cell, Device, Execution, Must, UsageError, stable_hash

AUTO: Literal["auto"] = "auto"
OF_SIZES = "-sizes"  # suffix of the experiment (and, without --name, the run) in which batch sizes are searched
DEFAULT_REPEATS = 12
DEFAULT_TIMEOUT_SECONDS = 600.0
TIMEOUT_OF_SECONDS = 3  # times --seconds, where that is longer: start, warm-up and the clocks take time as well
EPOCH_TIMEOUT_SECONDS = 3600.0
LONGEST_SECONDS = 1e8  # of any limit: three years, in which the system's clocks can still count
WORKERS_SECONDS = 120.0  # for a worker group to start, and to end an overdue trial itself

T = TypeVar("T")


class FlagGroup(NamedTuple):
    """Flags that `--help` shows together."""

    name: str
    doc: str


SETTING = FlagGroup(
    "setting", "What is measured. Flags that take several values are combined: every combination is measured."
)
MEASURING = FlagGroup("measuring", "How it is measured.")
RESULTS = FlagGroup("results", "Where the results go.")
CLUSTER = FlagGroup("cluster", "Which machines measure.")
RUN = FlagGroup("run", "How this run proceeds, and what it prints.")

_SECONDS = Must("must be a number of seconds above 0", lambda value: 0 < value < float("inf"))
_AT_MOST = Must("must be at most 2147483647", lambda value: value < 2**31)
_MINUTES = Must("must be a number of minutes above 0", _SECONDS.holds)
_SHARE = Must("must be between 0 and 1 (0.02 is 2 %)", lambda value: 0 < value < 1)
_SEED = Must("must be between 0 and 2**63 - 1", lambda value: 0 <= value < 2**63)
_NAME = Must(
    "takes only letters, digits and - _ . (at most 100 of them), and may not begin with a dot",
    lambda name: (
        0 < len(name.encode(errors="replace")) <= 100
        and all(c.isalnum() or c in "-_." for c in name)
        and name[0] != "."
    ),
)
_DATASET = Must(
    "must be a name, a folder or a .parquet file, in UTF-8",  # it is a column of the tables
    lambda name: name != "" and name.encode("utf-8", "replace").decode("utf-8") == name,
)
_RESULTS = Must("must be a folder or a URL such as s3://BUCKET/FOLDER", lambda value: str(value) != "")


@dataclass(frozen=True, kw_only=True)
class How:
    """How each trial of a run is to be measured: those of the settings that its process has to know."""

    seconds: float
    timeout_seconds: float | None = None  # None: the default of the trial's kind
    profile: bool = False
    save_model: bool = False

    def limit_seconds(self, cell: Cell) -> float:
        """Time limit of a trial of `cell`, seconds."""
        timed = max(DEFAULT_TIMEOUT_SECONDS, TIMEOUT_OF_SECONDS * self.seconds)
        limit = self.timeout_seconds or (EPOCH_TIMEOUT_SECONDS * cell.epochs if cell.epochs else timed)
        return min(limit, LONGEST_SECONDS)

    def process_limit_seconds(self, cell: Cell) -> float:
        """Time limit of the process that runs it, seconds: longer with several workers, which end the trial first."""
        return self.limit_seconds(cell) + (WORKERS_SECONDS if cell.num_workers > 1 else 0.0)


def _sorted(value: Any) -> Any:
    return tuple(sorted(value)) if isinstance(value, tuple) else value


def _with_axes(settings: type[T]) -> type[T]:
    """Give the class the flags of the axes; no value means that the recipe decides."""
    hints: dict[str, Any] = get_type_hints(Axes)
    for f in fields(Axes):
        if f.metadata["flag"]:
            values = GenericAlias(tuple, (hints[f.name], ...))
            settings.__annotations__[f.name] = Annotated[values, SETTING, f.metadata["must"]]
            setattr(settings, f.name, ())
    return settings


@dataclass(frozen=True, kw_only=True)
@_with_axes
class Settings:
    """The flags, the same for every experiment. Axes take several values; the grid is their product.

    A flag is annotated with its group and the requirements on its values. A subclass may give it another default.
    """

    device: Annotated[tuple[Device, ...], SETTING] = ()
    """Device kinds to measure. Default: every kind that the machine or cluster has."""
    recipe: Annotated[tuple[str, ...], SETTING] = ("blog", "tuned")
    """Recipes: named values of the axes below."""
    batch_size: Annotated[tuple[int, ...] | Literal["auto"], SETTING, AT_LEAST_1] = (32, 64, 128)
    """Images per step and worker; auto finds the largest batch that fits and the fastest one."""
    num_workers: Annotated[tuple[int, ...], SETTING, AT_LEAST_1] = (1,)
    """Data-parallel workers, not the DataLoader's (several use Ray Train's worker group and DDP)."""
    num_nodes: Annotated[tuple[int, ...], SETTING, AT_LEAST_1] = ()
    """Machines that the workers are spread over. Default: the fewest that have a GPU, or a core, for each worker."""
    cpu_threads: Annotated[int | None, SETTING, AT_LEAST_1] = None
    """Threads of each worker. Default: the machine's cores divided by its workers."""
    model: Annotated[str, SETTING] = "resnet50"
    """torchvision classification model, or your own: package.module:function, called with the number of classes."""
    image_size: Annotated[int, SETTING, AT_LEAST_1] = 32
    """Height and width, in pixels, that every image is scaled and cropped to."""
    dataset: Annotated[str, SETTING, _DATASET] = "fashion-mnist-12k"
    """An image folder, a .parquet file, or a name."""
    data_dir: Annotated[Path | None, SETTING] = None
    """Folder for the files of a named data set; those that are missing are downloaded there. Default: a cache."""
    repeats: Annotated[int | None, MEASURING, AT_LEAST_1] = None
    """How many times each setting is measured. Default: 12, or 1 with --epochs."""
    processes: Annotated[int, MEASURING, AT_LEAST_1] = 3
    """Fresh trial processes that the repeats are spread over."""
    seconds: Annotated[float, MEASURING, _SECONDS] = 1.0
    """Measured seconds of each trial."""
    epochs: Annotated[int | None, MEASURING, AT_LEAST_1] = None
    """Train whole epochs instead, and evaluate after each."""
    target_interval: Annotated[float | None, MEASURING, _SHARE] = None
    """Add repeats until the interval of each speedup reaches at most this far to each side (0.02 is 2 %)."""
    aa: Annotated[bool, MEASURING] = False
    """Measure each setting against an identical copy of itself (A/A): the noise floor."""
    seed: Annotated[int, MEASURING, _SEED] = 42
    """Seed of the weights, of the data order and of the order of settings."""
    timeout_seconds: Annotated[float | None, MEASURING, _SECONDS] = None
    """End a trial after this many seconds. Default: 600, or 3 times --seconds if longer; 3600 for each of --epochs."""
    results_dir: Annotated[str, RESULTS, _RESULTS] = "results"
    """Folder of the Parquet tables, or a URL in object storage: s3://BUCKET/FOLDER, gs://BUCKET/FOLDER."""
    name: Annotated[str | None, RESULTS, _NAME] = None
    """Name of the run. Default: the experiment's."""
    profile: Annotated[bool, RESULTS] = False
    """Keep a PyTorch profiler trace of each setting in RESULTS_DIR/files, taken outside the measured windows."""
    save_model: Annotated[bool, RESULTS] = False
    """With --epochs: keep each trained model's state_dict in RESULTS_DIR/files."""
    address: Annotated[str | None, CLUSTER] = None
    """Ray cluster to join: "auto" or host:port. Default: start Ray on this machine alone."""
    machines: Annotated[int | None, CLUSTER, AT_LEAST_1] = None
    """With --address: how many machines measure; an autoscaler is asked for those that are missing. Default: all."""
    accelerator_type: Annotated[str | None, CLUSTER] = None
    """With --address: only machines with this accelerator, by Ray's name for it, for example A100."""
    wait_seconds: Annotated[float, CLUSTER, _SECONDS] = 900.0
    """With --address: wait this long for machines that an autoscaler starts, and up to a minute for Ray to answer."""
    fresh: Annotated[bool, RUN] = False
    """Start a new run instead of continuing an unfinished one of the same name and settings."""
    retry: Annotated[Literal["failed", "disturbed", "all"] | None, RUN] = None
    """Run trials of the newest run again, even if it is complete: those that failed, also each whole repeat that other
    work disturbed, or all of them."""
    mix_environments: Annotated[bool, RUN] = False
    """Continue a run that was begun with other software or on another machine."""
    max_minutes: Annotated[float, RUN, _MINUTES] = 30.0
    """With --target-interval: start no more repeats after this many minutes."""
    advice: Annotated[bool, RUN] = True
    """--no-advice names the quality flags without saying what to do about them."""
    dry_run: Annotated[bool, RUN] = False
    """Print the planned settings and, as far as known, how long they take; then stop."""
    if TYPE_CHECKING:  # the only flag of an axis that the code itself names
        execution: tuple[Execution, ...] = ()

    def __post_init__(self) -> None:
        for name, metadata in self.flags().items():
            value, text = getattr(self, name), f"--{name.replace('_', '-')}"
            values = value if isinstance(value, tuple) else () if value in (None, AUTO) else (value,)
            if getattr(type(self), name) and value == ():
                raise UsageError(f"{text} needs at least one value")
            if twice := sorted({str(one) for one in values if values.count(one) > 1}):
                raise UsageError(f"{text} names {', '.join(twice)} twice: give each value once")
            for must in (one for one in metadata if isinstance(one, Must)):
                for one in values:
                    must.check(text, one)
                    if must is AT_LEAST_1:
                        _AT_MOST.check(text, one)
        for name, other, what in (
            ("machines", "address", "for the machines of a Ray cluster"),
            ("accelerator_type", "address", "for the machines of a Ray cluster"),
            ("wait_seconds", "address", "for the machines of a Ray cluster"),
            ("max_minutes", "target_interval", "for a run that goes on until its intervals are tight"),
            ("save_model", "epochs", "for models trained for whole epochs"),
        ):
            value = getattr(self, name)
            # --no-save-model asks for nothing, also where an experiment saves models by default.
            if value is not False and value != getattr(type(self), name) and getattr(self, other) is None:
                text, needed = (f"--{flag.replace('_', '-')}" for flag in (name, other))
                raise UsageError(f"{text} is {what}: give {needed} too, or leave it out")
        if self.timeout_seconds and not self.epochs and self.timeout_seconds <= self.seconds:
            raise UsageError(
                f"--timeout-seconds {self.timeout_seconds:g} ends each trial before its --seconds {self.seconds:g} are "
                "measured: give a longer timeout, or fewer seconds"
            )
        for one, other, what in (
            ("fresh", "retry", "--fresh starts a new run and --retry goes on with one"),
            ("fresh", "mix_environments", "--fresh starts a new run and --mix-environments goes on with one"),
        ):
            if getattr(self, one) != getattr(type(self), one) and getattr(self, other):
                raise UsageError(f"{what}: give only one of them")

    @classmethod
    def flags(cls) -> dict[str, tuple[Any, ...]]:
        """The annotations of each flag: its group, and the requirements on its values."""
        found: dict[str, tuple[Any, ...]] = {}
        for base in reversed(cls.__mro__):
            for name, hint in get_type_hints(base, include_extras=True).items():
                found[name] = getattr(hint, "__metadata__", ()) or found.get(name, ())
        return found

    @property
    def request_id(self) -> str:
        """Hash of what is asked for: every flag but those of the groups results (except --name), cluster and run.

        The order of several values does not count. Flags at their defaults are left out, so that a flag that is added
        later changes no earlier request.
        """
        apart = {name for name, metadata in self.flags().items() if {RESULTS, CLUSTER, RUN} & set(metadata)} - {"name"}
        asked = {name: (_sorted(value), _sorted(getattr(type(self), name))) for name, value in asdict(self).items()}
        given = {name: value for name, (value, default) in asked.items() if value != default}
        return stable_hash({name: str(value) for name, value in given.items() if name not in apart})

    @property
    def repeats_planned(self) -> int:
        """Repeats, with the default resolved."""
        return self.repeats or (1 if self.epochs else DEFAULT_REPEATS)

    @property
    def processes_planned(self) -> int:
        """Processes that the repeats are spread over: at most one per repeat."""
        return min(self.processes, self.repeats_planned)
