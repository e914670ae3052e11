"""The training loops: a timed visit to a cell that stays hot, and whole epochs."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from rresnet import hardware
from rresnet.config import How
from rresnet.quality import flags, steady
from rresnet.quality.monitor import Monitor, Usage, process_peak_bytes
from rresnet.tables.measurement import Epoch, Loss, Measurement, Record
from rresnet.training import inputs, limits, step
from rresnet.training.memory import is_out_of_memory
from rresnet.training.timing import Stopwatch
from rresnet.training.workbench import Workbench

WARMUP_SECONDS = 0.5  # at least,
WARMUP_LIMIT_SECONDS = 10.0  # and at most, if there are enough windows to tell whether the times have settled
LOSS_STEPS = 100  # between the losses that are kept, as in the blog
PROFILED_STEPS = 3
MEMORY_STEPS = 2  # in which a cell's peak memory is noted, see `Workbench.noting_memory`

ProgressCallback = Callable[[float], None]  # called between windows with the images per second so far


class Canary(NamedTuple):
    """The canary's product and copy; None where memory has no room for them beside the cell."""

    matrix_seconds: float | None
    copy_seconds: float | None
    seconds: float  # that all its calls took


class NonFiniteLossError(ArithmeticError):
    """The loss is NaN or infinite: what was trained is worth nothing, however fast it was."""


def train(bench: Workbench, how: How, *, startup_seconds: float, progress: ProgressCallback) -> Record:
    """Train the cell for whole epochs or for a timed visit, as it asks, and make the files that were asked for."""
    new = bench.steps_trained == 0
    if bench.cell.epochs:
        record = train_epochs(
            bench,
            epochs=bench.cell.epochs,
            startup_seconds=startup_seconds,
            progress=progress,
            save_model=how.save_model,
        )
    else:
        record = visit(bench, seconds=how.seconds, startup_seconds=startup_seconds, progress=progress)
    if how.profile and new:
        record = replace(record, files={**record.files, ".trace.json.gz": bench.trace(PROFILED_STEPS)})
    return record


def visit(bench: Workbench, *, seconds: float, startup_seconds: float, progress: ProgressCallback) -> Record:
    """Train for `seconds` of measured windows.

    The first visit warms up first; a later one takes a single step to warm the caches that other cells have used.
    """
    bench.apply_process_settings()
    canary = _canary(bench.device)
    watch, monitor = Stopwatch(bench.device), Monitor(_gpu_uuid(bench.device))
    settled = _warm_up(bench, watch)
    with monitor.watching():
        _measure(bench, watch, monitor, seconds, progress)
    return _record(bench, watch, monitor.usage(), canary, settled, startup_seconds)


def _warm_up(bench: Workbench, watch: Stopwatch) -> bool:
    """Train until the times of the windows have settled, on a later visit for one step; return whether they have.

    A GPU is left with one step to work on, so that the batch of the first measured step, too, is fetched while it
    computes.
    """
    first = bench.step_seconds is None
    settled = not first or _settle(bench, watch)
    if not first or bench.device.type == "cuda":
        _warm_up_window(bench, watch, 1)
    return settled


def _measure(bench: Workbench, watch: Stopwatch, monitor: Monitor, seconds: float, progress: ProgressCallback) -> None:
    """Train for `seconds` of measured windows; on a GPU for one more, which it has been given by then."""
    while steps := bench.agreed(0 if watch.total("measured")[0] >= seconds else bench.steps_in_window()):
        for raw in watch.window(bench.batches, steps, "measured", world=bench.world):
            bench.take_step(raw)
        monitor.keep_up()
        measured, taken, trained = watch.total("measured")
        if taken:
            bench.step_seconds = measured / taken
            progress(trained / measured)
    watch.read()


def _settle(bench: Workbench, watch: Stopwatch) -> bool:
    """Train until the Mann-Kendall test sees no fall in the latter half of the windows (`rresnet.quality.steady`)."""
    settled = over = False
    while steps := bench.agreed(0 if settled or over else bench.steps_in_window()):
        if len(watch.windows) == 1:
            with bench.noting_memory():
                _warm_up_window(bench, watch, max(MEMORY_STEPS, steps))
        else:  # DDP reallocates its buckets in its second step, which must be over before memory is noted
            fewest = 2 if bench.world > 1 and not watch.windows else 1
            _warm_up_window(bench, watch, max(fewest, steps))
        watch.read()
        times = [window.seconds / window.steps for window in watch.windows]
        bench.step_seconds = times[-1]
        warm = watch.total("warmup")[0]
        settled = warm >= WARMUP_SECONDS and not steady.falls(steady.latter_half(times))
        over = warm >= WARMUP_LIMIT_SECONDS and len(times) > steady.FEWEST_VALUES
    return settled


def _warm_up_window(bench: Workbench, watch: Stopwatch, steps: int) -> None:
    for raw in watch.window(bench.batches, steps, "warmup", world=bench.world):
        bench.take_step(raw)


def train_epochs(
    bench: Workbench, *, epochs: int, startup_seconds: float, progress: ProgressCallback, save_model: bool = False
) -> Record:
    """Train whole epochs from the cell's seed, evaluating after each, outside the clock."""
    canary = _canary(bench.device)
    watch, monitor = Stopwatch(bench.device), Monitor(_gpu_uuid(bench.device))
    state = step.State(bench.network, bench.optimizer, bench.train_step.scaler)
    settled = _settle(bench, watch)
    state.restore()
    del state
    bench.start_over()
    losses: list[Loss] = []
    rows = [_train_epoch(bench, watch, monitor, epoch, progress, losses) for epoch in range(epochs)]
    files = {".pt": bench.state_dict_bytes()} if save_model else {}  # as evaluated: the other clocks go on training
    record = _record(bench, watch, monitor.usage(), canary, settled, startup_seconds, epochs=rows)
    return replace(record, losses=tuple(losses), files=files)


def _train_epoch(
    bench: Workbench, watch: Stopwatch, monitor: Monitor, epoch: int, progress: ProgressCallback, rows: list[Loss]
) -> Epoch:
    """Train one epoch and evaluate; `rows` gets the loss of every hundredth step, as the blog prints it."""
    batches, losses, taken = bench.inputs.epoch(), list[torch.Tensor](), -1
    with monitor.watching():
        while taken < len(losses):
            monitor.keep_up()
            taken = len(losses)
            steps = bench.steps_in_window()
            for raw in watch.window(batches, steps, "measured", epoch=epoch, world=bench.world):
                losses.append(bench.take_step(raw))
            measured, taken_so_far, trained = watch.total("measured")
            if taken_so_far:
                progress(trained / measured)
        watch.read()
    windows = [w for w in watch.windows if w.epoch == epoch]
    rows += [
        Loss(epoch=epoch, step=number, loss=losses[number - 1].item())
        for number in range(LOSS_STEPS, len(losses) + 1, LOSS_STEPS)
    ]
    start = time.perf_counter()
    test_loss, test_accuracy = evaluate(bench)
    return Epoch(
        epoch=epoch,
        seconds=sum(w.seconds for w in windows),
        images=sum(w.images for w in windows),
        train_loss=torch.stack(losses).mean().item(),
        test_loss=test_loss,
        test_accuracy=test_accuracy,
        evaluation_seconds=time.perf_counter() - start,
    )


@torch.no_grad()
def evaluate(bench: Workbench) -> tuple[float, float]:
    """Mean cross-entropy (nats) and accuracy over the test images."""
    bench.network.eval()
    loss, right, count = 0.0, 0, 0
    for images, labels in inputs.evaluation_batches(bench.data.test, bench.cell, bench.device):
        with step.autocast(bench.cell):
            outputs = bench.network(images)
        loss += nn.functional.cross_entropy(outputs.float(), labels, reduction="sum").item()
        right += int((outputs.argmax(1) == labels).sum())
        count += len(labels)
    bench.network.train()
    return loss / count, right / count


def _record(
    bench: Workbench,
    watch: Stopwatch,
    usage: Usage,
    canary: Canary,
    settled: bool,
    startup_seconds: float,
    *,
    epochs: list[Epoch] | None = None,
) -> Record:
    cell, made, machine, threads = bench.cell, bench.train_step, hardware.probe(), torch.get_num_threads()
    warm, _, _ = watch.total("warmup")
    measured, steps, images = watch.total("measured")
    rate, whole, losses = images / measured, epochs or [], bench.recent_losses()
    conv_precision, matmul_precision, autocast_dtype = step.precision_in_effect(cell)
    usage = bench.over_workers(usage)
    start = time.perf_counter()
    bench.measured_seconds += measured
    communication_seconds = bench.communication_seconds()  # first, since it is part of what holds a step up
    (others, limit), work = _clocks(bench), bench.work
    clocks_seconds = canary.seconds + time.perf_counter() - start
    if not all(math.isfinite(loss) for loss in losses):  # only after what the workers do together
        raise NonFiniteLossError(f"the loss became {losses[-1]} after {bench.steps_trained} steps")
    achieved = rate / bench.world * work.flops if work else None
    measurement = Measurement(
        status="ok",
        images_per_second=rate,
        step_seconds=measured / steps,
        epoch_seconds=measured / len(whole) if whole else bench.inputs.images_per_epoch * bench.world / rate,
        epoch_seconds_kind="measured" if whole else "projected",
        startup_seconds=startup_seconds - (made.compile_seconds or 0),
        compile_seconds=made.compile_seconds,
        compile_cache=made.compile_cache,
        warmup_seconds=warm,
        clocks_seconds=clocks_seconds,
        measured_seconds=measured,
        measured_images=images,
        **others,
        communication_seconds=communication_seconds,
        flops_per_image=work.flops if work else None,
        matrix_flops_per_second=limit.matrix_flops_per_second if limit else None,
        copy_bytes_per_second=limit.copy_bytes_per_second if limit else None,
        percent_of_limit=100 * achieved / limit.matrix_flops_per_second if achieved and limit else None,
        canary_matrix_seconds=canary.matrix_seconds,
        canary_copy_seconds=canary.copy_seconds,
        peak_memory_bytes=bench.peak_memory_bytes,
        process_peak_bytes=process_peak_bytes(),
        cpu_seconds=usage.cpu_seconds,
        foreign_cpu_seconds=usage.foreign_cpu_seconds,
        steal_cpu_seconds=usage.steal_cpu_seconds,
        # A GPU was watched from the middle of the step before: the power is taken to be the same.
        energy_joules=usage.energy_joules and usage.energy_joules * measured / usage.seconds,
        gpu_utilization_percent=usage.gpu_utilization_percent,
        observed_threads=threads,
        first_loss=bench.first_loss,
        final_loss=whole[-1].train_loss if whole else losses[-1],
        test_accuracy=whole[-1].test_accuracy if whole else None,
        dataset_fingerprint=bench.data.fingerprint,
        conv_precision=conv_precision,
        matmul_precision=matmul_precision,
        autocast_dtype=autocast_dtype,
        quality_flags=flags.of_trial(
            usage,
            cell,
            cpu_count=machine.cpu_count,
            cpu_cores=machine.cpu_cores,
            observed_threads=threads,
            window_seconds=[w.seconds / w.steps for w in watch.windows if w.kind == "measured"],
            settled=settled,
            learning=flags.learns(bench.first_loss, losses, bench.steps_trained),
        ),
    )
    made.compile_seconds = made.compile_cache = None  # reported once: later trials of the process did not wait for it
    return Record(measurement=measurement, windows=tuple(watch.windows), epochs=tuple(whole))


def _clocks(bench: Workbench) -> tuple[dict[str, Any], limits.Limits | None]:
    """The other clocks and the device's limits, without those for which memory is too short.

    The trial itself has been trained by now, and must not be lost because of what is measured besides.
    """
    others, limit = {}, None
    try:
        others = bench.other_clocks()
        limit = bench.limit()
    except (MemoryError, RuntimeError) as error:
        if bench.world > 1 or not is_out_of_memory(error):  # the other workers wait for this one
            raise
    return others, limit


def _canary(device: torch.device) -> Canary:
    machine, start = hardware.probe(), time.perf_counter()
    found: tuple[float | None, float | None] = None, None
    try:
        found = limits.canary(device.type, half=machine.gpu_bf16 if device.type == "cuda" else machine.cpu_bf16)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    return Canary(*found, time.perf_counter() - start)


def _gpu_uuid(device: torch.device) -> str | None:
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None
