"""The training loops: a timed visit to a cell that stays hot, and whole epochs."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from rresnet import inputs, model, step
from rresnet.config import Cell
from rresnet.data import ImageData
from rresnet.inputs import Batch, Inputs
from rresnet.measurement import Epoch, Measurement, Window
from rresnet.timing import WINDOW_SECONDS, Stopwatch, steps_in

WARMUP_SECONDS = 0.5
WARMUP_STEPS = 2

Progress = Callable[[float], None]  # called between windows with the images per second so far


@dataclass(frozen=True, kw_only=True)
class Record:
    """All that a trial sends back."""

    measurement: Measurement
    windows: tuple[Window, ...] = ()
    epochs: tuple[Epoch, ...] = ()


@dataclass
class Workbench:
    """A cell ready to train: model, optimizer, step and a stream of batches, and what its visits have learnt of it."""

    cell: Cell
    data: ImageData
    device: torch.device
    rank: int = 0
    world: int = 1
    network: nn.Module = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    train_step: step.Step = field(init=False)
    inputs: Inputs = field(init=False)
    batches: Iterator[Batch] = field(init=False)
    first_loss: float | None = None
    step_seconds: float | None = None  # None until the first visit has warmed up

    def __post_init__(self) -> None:
        self.apply_process_settings()
        self.network, self.optimizer = model.build(self.cell, len(self.data.classes), self.device)
        if self.world > 1:
            from ray.train.torch import prepare_model

            self.network = prepare_model(self.network, move_to_device=False)
            self.optimizer = model.optimizer_of(self.network, self.cell)
        self.network.train()
        self.train_step = step.build(self.cell, self.network, self.optimizer)
        self.inputs = Inputs(self.data.train, self.cell, self.device, self.rank, self.world)
        self.batches = self.inputs.forever()

    def apply_process_settings(self) -> None:
        """Set what is process-wide in PyTorch to what this cell asks for; another cell may have run in between."""
        torch.set_num_threads(self.cell.cpu_threads)
        step.set_precision(self.cell)

    def steps_in_window(self) -> int:
        """Steps of about half a second, by the speed seen so far."""
        assert self.step_seconds is not None, "the first visit warms up before it measures"
        return steps_in(WINDOW_SECONDS, self.step_seconds)

    def agreed(self, steps: int) -> int:
        """What the first worker decides, by its own clock: all must take the same number of steps, or they deadlock."""
        if self.world == 1:
            return steps
        decision = torch.tensor(steps, device=self.device)
        torch.distributed.broadcast(decision, src=0)
        return int(decision.item())


def visit(bench: Workbench, *, seconds: float, startup_seconds: float, progress: Progress) -> Record:
    """Train for `seconds` of measured windows.

    The first visit warms up first; a later one takes a single step to warm the caches that other cells have used.
    """
    bench.apply_process_settings()
    watch = Stopwatch(bench.device)
    _warm_up(bench, watch)
    loss = torch.tensor(float("nan"))
    while steps := bench.agreed(0 if watch.total("measured")[0] >= seconds else bench.steps_in_window()):
        for images, labels in watch.window(bench.batches, steps, "measured", world=bench.world):
            loss = bench.train_step(images, labels)
        measured, taken, trained = watch.total("measured")
        bench.step_seconds = measured / taken
        progress(trained / measured)
    return _record(bench, watch, startup_seconds, final_loss=loss.item())


def _warm_up(bench: Workbench, watch: Stopwatch) -> None:
    first_visit = bench.step_seconds is None
    warm, steps = 0.0, 0
    while bench.agreed(steps < 1 or (first_visit and (warm < WARMUP_SECONDS or steps < WARMUP_STEPS))):
        for images, labels in watch.window(bench.batches, 1, "warmup", world=bench.world):
            loss = bench.train_step(images, labels)
        if bench.first_loss is None:
            bench.first_loss = loss.item()
        warm, steps, _ = watch.total("warmup")
    if first_visit:
        bench.step_seconds = watch.windows[-1].seconds


def train_epochs(bench: Workbench, *, epochs: int, startup_seconds: float, progress: Progress) -> Record:
    """Train whole epochs from the cell's seed, evaluating after each, outside the clock."""
    watch = Stopwatch(bench.device)
    state = step.State(bench.network, bench.optimizer)
    _warm_up(bench, watch)
    state.restore()
    bench.inputs = Inputs(bench.data.train, bench.cell, bench.device, bench.rank, bench.world)
    rows = [_train_epoch(bench, watch, epoch, progress) for epoch in range(epochs)]
    return _record(bench, watch, startup_seconds, final_loss=rows[-1].train_loss, epochs=rows)


def _train_epoch(bench: Workbench, watch: Stopwatch, epoch: int, progress: Progress) -> Epoch:
    batches, losses, taken = bench.inputs.epoch(), list[torch.Tensor](), -1
    while taken < len(losses):
        taken = len(losses)
        for images, labels in watch.window(
            batches, bench.steps_in_window(), "measured", epoch=epoch, world=bench.world
        ):
            losses.append(bench.train_step(images, labels))
        measured, _, trained = watch.total("measured")
        progress(trained / measured)
    windows = [w for w in watch.windows if w.epoch == epoch]
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
    startup_seconds: float,
    *,
    final_loss: float,
    epochs: list[Epoch] | None = None,
) -> Record:
    warm, _, _ = watch.total("warmup")
    measured, steps, images = watch.total("measured")
    rate = images / measured
    whole = epochs or []
    measurement = Measurement(
        status="ok",
        images_per_second=rate,
        step_seconds=measured / steps,
        epoch_seconds=measured / len(whole) if whole else bench.inputs.images_per_epoch * bench.world / rate,
        epoch_seconds_kind="measured" if whole else "projected",
        startup_seconds=startup_seconds,
        warmup_seconds=warm,
        measured_seconds=measured,
        measured_images=images,
        peak_memory_bytes=peak_memory_bytes(bench.device),
        observed_threads=torch.get_num_threads(),
        first_loss=bench.first_loss,
        final_loss=final_loss,
        test_accuracy=whole[-1].test_accuracy if whole else None,
        dataset_fingerprint=bench.data.fingerprint,
    )
    return Record(measurement=measurement, windows=tuple(watch.windows), epochs=tuple(whole))


def peak_memory_bytes(device: torch.device) -> int | None:
    """Peak bytes allocated on a GPU since the last reset; unknown on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
