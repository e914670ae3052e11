"""The columns of the tables: what a trial reports, as dataclasses, and the Arrow schemas made from them."""

import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from datetime import datetime
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pyarrow as pa

from rresnet.cell import Cell

SCHEMA_VERSION = 1  # of the columns
Status = Literal["ok", "out_of_memory", "timeout", "error", "killed", "infeasible"]


def column(doc: str, *, optional: bool = True) -> Any:
    """A dataclass field that is a table column; `doc` says what it holds and in which unit."""
    return field(default=None, metadata={"doc": doc}) if optional else field(metadata={"doc": doc})


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Which planned trial a row is."""

    run_id: str = column("run the trial belongs to", optional=False)
    experiment: str = column("experiment that planned it", optional=False)
    trial_id: str = column("stable hash of configuration and repeat", optional=False)
    cell_id: str = column("stable hash of the configuration", optional=False)
    repeat: int = column("repeat, from 0; cells of one repeat are paired", optional=False)
    process: int = column("which of the run's trial processes, from 0", optional=False)
    attempt: int = column("1, or more where the trial was tried again", optional=False)
    schema_version: int = column("version of these columns", optional=False)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one trial found. Missing is None, never 0."""

    status: Status = column("ok, out_of_memory, timeout, error, killed or infeasible", optional=False)
    error_type: str | None = column("class of the error")
    error_message: str | None = column("message of the error")
    output_tail: str | None = column("end of what a failed trial printed, or of its traceback")
    images_per_second: float | None = column("measured_images / measured_seconds, over all workers")
    step_seconds: float | None = column("mean seconds of a training step in the measured windows")
    epoch_seconds: float | None = column("seconds of training a whole epoch, evaluation not counted")
    epoch_seconds_kind: Literal["measured", "projected"] | None = column(
        "measured if whole epochs were trained, projected if it follows from the rate"
    )
    startup_seconds: float | None = column("seconds to have data, model and optimizer ready in this trial")
    compile_seconds: float | None = column("seconds of compilation or graph capture in this trial")
    compile_cache: str | None = column("warm if the compiler found all it needed on disk, else cold")
    warmup_seconds: float | None = column("seconds of warm-up windows in this trial")
    clocks_seconds: float | None = column("seconds of the canary, the other clocks and the limits in this trial")
    measured_seconds: float | None = column("seconds of the measured windows")
    measured_images: int | None = column("images trained in the measured windows, over all workers")
    compute_images_per_second: float | None = column(
        "images a second of the step alone, on one batch kept on the device"
    )
    input_images_per_second: float | None = column("images a second of the input path alone")
    bottleneck: str | None = column("input, launch, latency, memory, compute, optimizer or communication")
    percent_of_limit: float | None = column("achieved FLOP/s in percent of the machine's measured matrix rate")
    flops_per_image: float | None = column("FLOP of a training step per image, optimizer not counted")
    matrix_flops_per_second: float | None = column(
        "FLOP a second of a large matrix product in the trial's precision, or fp32 if the CPU has no bf16 products"
    )
    copy_bytes_per_second: float | None = column("bytes read and written a second by a large copy (the limit)")
    optimizer_seconds: float | None = column("seconds of a step in optimizer.step, timed on the step alone")
    launch_share: float | None = column(
        "share of a step until the CPU had launched it, timed on the step alone; GPU only"
    )
    communication_seconds: float | None = column(
        "seconds that exchanging gradients adds to a step; several workers only, and not in each of their trials"
    )
    canary_matrix_seconds: float | None = column("seconds of the canary's matrix product right before the trial")
    canary_copy_seconds: float | None = column("seconds of the canary's copy right before the trial")
    peak_memory_bytes: int | None = column("peak memory of this cell's own tensors on the device of one worker, bytes")
    process_peak_bytes: int | None = column("peak resident memory of the trial process so far, bytes")
    cpu_seconds: float | None = column("CPU seconds of the trial's processes in the measured windows")
    foreign_cpu_seconds: float | None = column(
        "CPU seconds of all other processes on the trial's processors in the measured windows; null under a CPU quota"
    )
    steal_cpu_seconds: float | None = column(
        "CPU seconds of these processors that the hypervisor gave to others in the measured windows; "
        "null under a CPU quota"
    )
    energy_joules: float | None = column(
        "energy of the measured windows, joules (of the trial's GPUs, or of processor packages)"
    )
    gpu_utilization_percent: float | None = column(
        "GPU utilisation at the end of the measured windows, or of each epoch's (NVML's last sample), percent"
    )
    observed_threads: int | None = column("intra-op threads of each worker, as PyTorch reported them while training")
    first_loss: float | None = column("loss of the cell's first step in its process (mean cross-entropy, nats)")
    final_loss: float | None = column("loss of the trial's last step, or mean of its last epoch (first worker's, nats)")
    test_accuracy: float | None = column("share of test images classified correctly after the last epoch")
    dataset_fingerprint: str | None = column("hash of the data set's images and labels")
    conv_precision: str | None = column("fp32 arithmetic that PyTorch was set to for convolutions: ieee or tf32")
    matmul_precision: str | None = column("fp32 arithmetic that PyTorch was set to for matrix products: ieee or tf32")
    autocast_dtype: str | None = column("type that autocast computed in; null without autocast")
    quality_flags: tuple[str, ...] | None = column("what makes the row doubtful; see rresnet.quality.flags")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where and with what a trial ran."""

    hostname: str | None = column("machine")
    cpu_model: str | None = column("processor; with the numbers of its model where a hypervisor may hide the name")
    cpu_count: int | None = column("logical processors the trial could use")
    cpu_affinity: str | None = column("numbers of the processors that the trial process might run on, such as 0-3,8")
    gpu_name: str | None = column("GPU of a gpu trial")
    driver_version: str | None = column("NVIDIA driver")
    os_version: str | None = column("operating system and its version")
    python_version: str | None = column("Python")
    torch_version: str | None = column("PyTorch")
    torchvision_version: str | None = column("torchvision")
    cuda_version: str | None = column("CUDA that PyTorch was built with")
    ray_version: str | None = column("Ray")
    rresnet_version: str | None = column("rresnet")
    git_commit: str | None = column(
        "commit of rresnet's checkout, with -dirty- and a hash if its code was changed since; null outside a checkout"
    )
    variables: str | None = column(
        "environment variables that change how fast libraries run (allocator, threads), NAME=value; none if none is set"
    )
    model_code: str | None = column(
        "hash of the file or package that holds a --model of your own; null for torchvision's, and if none is found"
    )
    environment_fingerprint: str | None = column(
        "hash of software, machine and a model of your own; rows with different hashes may not be compared"
    )


@dataclass(frozen=True, kw_only=True)
class When:
    """When a trial ran."""

    started_at: datetime | None = column("start of the trial, UTC")
    finished_at: datetime | None = column("end of the trial, UTC")
    command_started_at: datetime | None = column("start of the command that ran it, UTC; a continued run has several")


@dataclass(frozen=True, kw_only=True)
class Window:
    """One timed stretch of steps, on the time line of the device that took them. A row of the windows table."""

    window: int = column("number of the window in its trial, from 0", optional=False)
    kind: Literal["warmup", "measured"] = column("warm-up windows are kept but enter no figure", optional=False)
    epoch: int | None = column("epoch the window belongs to, from 0; null in a timed trial")
    started_seconds: float = column("start, seconds after the trial's warm-up began", optional=False)
    seconds: float = column("length, seconds", optional=False)
    steps: int = column("training steps", optional=False)
    images: int = column("images trained, over all workers", optional=False)


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch of a trial with --epochs. A row of the epochs table."""

    epoch: int = column("epoch, from 0", optional=False)
    seconds: float = column("seconds of training, evaluation not counted", optional=False)
    images: int = column("images trained, over all workers", optional=False)
    train_loss: float = column("mean loss over the epoch's steps (first worker's, nats)", optional=False)
    test_loss: float | None = column("mean loss over the test images (nats)")
    test_accuracy: float | None = column("share of test images classified correctly")
    evaluation_seconds: float | None = column("seconds of evaluation, outside the clock")


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The loss of a step of a trial with --epochs, every hundredth. A row of the losses table."""

    epoch: int = column("epoch, from 0", optional=False)
    step: int = column("step of the epoch, from 1", optional=False)
    loss: float = column("mean cross-entropy of the step's batch (first worker's, nats)", optional=False)


@dataclass(frozen=True, kw_only=True)
class Record:
    """All that is known of a trial when it has ended; a trial that sent nothing back has only a measurement."""

    measurement: Measurement
    windows: tuple[Window, ...] = ()
    epochs: tuple[Epoch, ...] = ()
    losses: tuple[Loss, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)  # ending of the name -> content
    environment: Environment = Environment()
    when: When = When()


@dataclass(frozen=True, kw_only=True)
class Derived:
    """Columns that follow from the cell."""

    global_batch_size: int = column("images per step over all workers", optional=False)


_ARROW: dict[type, pa.DataType] = {
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    bool: pa.bool_(),
    datetime: pa.timestamp("us", tz="UTC"),
}


def _arrow_type(hint: Any) -> pa.DataType:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _arrow_type(next(h for h in get_args(hint) if h is not type(None)))
    if origin is Literal:
        return pa.string()
    if origin is tuple:
        return pa.list_(_arrow_type(get_args(hint)[0]))
    return _ARROW[hint]


def _arrow_fields(source: type) -> list["pa.Field[Any]"]:
    hints = get_type_hints(source)
    return [pa.field(f.name, _arrow_type(hints[f.name]), metadata={"doc": f.metadata["doc"]}) for f in fields(source)]


def _schema(key: list["pa.Field[Any]"], *dataclasses: type) -> pa.Schema:
    return pa.schema(
        [*key, *(f for source in dataclasses for f in _arrow_fields(source))],
        metadata={"rresnet_schema_version": str(SCHEMA_VERSION)},
    )


TRIALS = _schema([], Identity, Cell, Derived, Measurement, Environment, When)
TRIAL_KEY = ["run_id", "trial_id"]  # what joins the other tables to the trials table
DETAILS = {"windows": Window, "epochs": Epoch, "losses": Loss}  # the other tables, of which a trial has many rows
_KEY = [TRIALS.field(name) for name in TRIAL_KEY]
SCHEMAS = {"trials": TRIALS, **{name: _schema(_KEY, of_row) for name, of_row in DETAILS.items()}}


# The values with which a row that is older than an axis is read: as it was measured, on a CPU.
DEFAULTS = {axis.name: axis.default for axis in fields(Cell) if axis.default not in (MISSING, None)}
