"""A cell ready to train, and what its visits have learnt of it."""

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from rresnet import clocks, limits, model, monitor, step
from rresnet.config import Cell
from rresnet.data import ImageData
from rresnet.inputs import Batch, Inputs
from rresnet.limits import Limits, Work
from rresnet.timing import WINDOW_SECONDS, steps_in

RECENT_LOSSES = 10
CLOCKS_SHARE = 0.25  # the two other clocks cost at most this share of the measured time
INPUT_CLOCK_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class OtherClocks:
    """The step alone, the input alone, and the verdict."""

    step: clocks.StepClock
    input_images_per_second: float
    bottleneck: str | None


@dataclass
class Workbench:
    """A cell's model, optimizer, step and stream of batches."""

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
    limit: Limits = field(init=False)
    work: Work | None = field(init=False)
    steps_trained: int = 0
    step_seconds: float | None = None  # None until the first visit has warmed up
    peak_memory_bytes: int | None = None
    _measured_seconds: float = 0.0
    _clocks_seconds: float = 0.0
    _losses: deque[torch.Tensor] = field(default_factory=lambda: deque(maxlen=RECENT_LOSSES))
    _first: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None  # images, labels and loss of the first step
    _clock_inputs: Iterator[Batch] | None = None

    def __post_init__(self) -> None:
        cell = self.cell
        self.apply_process_settings()
        self.inputs = Inputs(self.data.train, cell, self.device, self.rank, self.world)
        self.batches = self.inputs.forever()
        self.limit = limits.measure(self.device.type, cell.precision, cell.cpu_threads)
        self.work = limits.work(cell.model, len(self.data.classes), cell.image_size, max(2, cell.batch_size))
        self.network, self.optimizer = model.build(cell, len(self.data.classes), self.device)
        if self.world > 1:
            from ray.train.torch import prepare_model

            self.network = prepare_model(self.network, move_to_device=False)
            self.optimizer = model.optimizer_of(self.network, cell)
        self.network.train()
        self.train_step = step.build(cell, self.network, self.optimizer)

    def apply_process_settings(self) -> None:
        """Set what is process-wide in PyTorch to what this cell asks for; another cell may have run in between."""
        torch.set_num_threads(self.cell.cpu_threads)
        step.set_precision(self.cell)

    def steps_in_window(self) -> int:
        """Steps of about a window, by the speed seen so far; one while nothing is known."""
        return 1 if self.step_seconds is None else steps_in(WINDOW_SECONDS, self.step_seconds)

    def took(self, images: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor) -> None:
        """Note a step that was taken, without waiting for the device."""
        self._losses.append(loss)
        self.steps_trained += 1
        if self._first is None:
            self._first = images, labels, loss

    @property
    def first_loss(self) -> float:
        """Loss of the first step in this process; waits for the device."""
        assert self._first is not None, "a visit comes first"
        return self._first[2].item()

    def recent_losses(self) -> list[float]:
        """Losses of the latest steps; waits for the device."""
        return [loss.item() for loss in self._losses]

    def agreed(self, steps: int) -> int:
        """What the first worker decides, by its own clock: all must take the same number of steps, or they deadlock."""
        if self.world == 1:
            return steps
        decision = torch.tensor(steps, device=self.device)
        torch.distributed.broadcast(decision, src=0)
        return int(decision.item())

    def over_workers(self, usage: monitor.Usage) -> monitor.Usage:
        """What the trial used: processor time and energy of all workers, the rest as this one saw it."""
        if self.world == 1:
            return usage
        known = usage.energy_joules is not None
        total = torch.tensor([usage.cpu_seconds, usage.energy_joules or 0.0], device=self.device)
        torch.distributed.all_reduce(total)
        cpu_seconds, energy = total.tolist()
        return replace(usage, cpu_seconds=cpu_seconds, energy_joules=energy if known else None)

    @contextlib.contextmanager
    def noting_memory(self) -> Iterator[None]:
        """Note the cell's peak memory while it trains in the block: its own tensors alone, on any device.

        The block must hold two steps or more, so that one begins with the gradients of another, and not the first,
        which makes the optimizer's state. What is freed in the block must have been allocated in it: a CPU's
        profiler does not know the size of anything older. Hence no gradients are left to begin with.
        """
        self.optimizer.zero_grad(set_to_none=True)
        own = sum(tensor.nbytes for tensor in self._lasting_tensors())
        if self.device.type == "cuda":
            before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            yield
            self.peak_memory_bytes = own + torch.cuda.max_memory_allocated(self.device) - before
        else:
            with torch.autograd.profiler.profile(profile_memory=True) as profile:
                yield
            assert profile.kineto_results is not None
            events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
            changes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
            self.peak_memory_bytes = own + max(0, *itertools.accumulate(changes, initial=0))

    def _lasting_tensors(self) -> Iterator[torch.Tensor]:
        yield from self.network.parameters()
        yield from self.network.buffers()
        yield from step.optimizer_tensors(self.optimizer)

    def other_clocks(self, measured_seconds: float) -> OtherClocks | None:
        """Measure the step alone and the input alone, where a quarter of the measured time so far pays for it.

        The steps train the model like any others. None when it has to wait for more measured time.
        """
        assert self.step_seconds is not None
        assert self._first is not None
        self._measured_seconds += measured_seconds
        steps = self.agreed(steps_in(WINDOW_SECONDS, self.step_seconds))
        cost = (steps + (self.device.type == "cuda")) * self.step_seconds + INPUT_CLOCK_SECONDS
        if not self.agreed(int(self._clocks_seconds + cost <= CLOCKS_SHARE * self._measured_seconds)):
            return None
        start = time.perf_counter()
        clock = clocks.step_alone(self.train_step, self.optimizer, self._first[:2], steps)
        if self._clock_inputs is None:  # its own stream: the cell's goes on where it was
            self._clock_inputs = Inputs(self.data.train, self.cell, self.device, self.rank, self.world).forever()
        rate = clocks.input_alone(self._clock_inputs, INPUT_CLOCK_SECONDS)
        self._clocks_seconds += time.perf_counter() - start
        verdict = clocks.bottleneck(
            clock, images=len(self._first[1]), input_rate=rate, work=self.work, limits=self.limit
        )
        return OtherClocks(step=clock, input_images_per_second=rate * self.world, bottleneck=verdict)
