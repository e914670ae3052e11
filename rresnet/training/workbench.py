"""A cell ready to train, and what its visits have found out about it."""

import contextlib
import functools
import io
import itertools
import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from rresnet import scratch
from rresnet.cell import Cell
from rresnet.data import ImageData
from rresnet.quality import monitor
from rresnet.training import clocks, limits, model, step
from rresnet.training.inputs import Batch, Inputs, Raw
from rresnet.training.limits import Limits, Work
from rresnet.training.timing import WINDOW_SECONDS, steps_in, synchronize

RECENT_LOSSES = 10
CLOCKS_SHARE = 0.25  # the two other clocks cost at most this share of the measured time
INPUT_CLOCK_SECONDS = 0.02


@dataclass
class Workbench:
    """A cell's model, optimizer, step and stream of batches; those of one worker, if it has several."""

    cell: Cell
    data: ImageData
    device: torch.device
    rank: int = 0
    world: int = 1
    workers: Any = None  # their process group; None: that of all there are
    agreeing: Any = None  # another one, for CPU tensors, so that agreeing on something waits for no GPU
    network: nn.Module = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    train_step: step.Eager = field(init=False)
    inputs: Inputs = field(init=False)
    batches: Iterator[Raw] = field(init=False)
    steps_trained: int = 0
    step_seconds: float | None = None  # None until the first visit has warmed up
    peak_memory_bytes: int | None = None
    measured_seconds: float = 0.0  # of all trials so far, which pay for the other clocks
    _clocks_seconds: float = 0.0
    _communication_clock_seconds: float = 0.0
    _communication_seconds: float = 0.0  # of a step, when last measured
    _losses: deque[torch.Tensor] = field(default_factory=lambda: deque(maxlen=RECENT_LOSSES))
    _first: tuple[Raw, torch.Tensor] | None = None  # batch and loss of the first step
    _clock_batches: Iterator[Batch] | None = None

    def __post_init__(self) -> None:
        cell = self.cell
        self.apply_process_settings()
        self.inputs = self._new_inputs()
        self.batches = self.inputs.forever()
        self.network, self.optimizer = model.build(cell, len(self.data.classes), self.device)
        self.apply_process_settings()  # again: a user's own model may have set others
        if self.rank:
            torch.manual_seed(cell.seed + self.rank)  # not for the weights, but for dropout
        if self.world > 1:
            from ray.train.torch import prepare_model

            # Gradients are kept in the buckets that are exchanged, and are not copied there and back.
            how = {"process_group": self.workers, "gradient_as_bucket_view": True}
            self.network = prepare_model(  # of the same parameters
                self.network, move_to_device=False, parallel_strategy_kwargs=how
            )
        self.network.train()
        self.train_step = step.build(
            cell, self.network, self.optimizer, self.inputs.load, lambda: self._new_inputs().examples()
        )

    def limit(self, *, look: bool = False) -> Limits:
        """The device's limits in the cell's precision; measured when first asked for, so that no start waits for it."""
        return limits.seen(self.device.type, self.cell.precision, self.cell.cpu_threads, look=look)

    @functools.cached_property
    def work(self) -> Work | None:
        """The work of a step for each image."""
        found = limits.work(self.cell, len(self.data.classes))
        self.apply_process_settings()  # the model was made once more
        return found

    def _new_inputs(self) -> Inputs:
        return Inputs(self.data.train, self.cell, self.device, self.rank, self.world)

    def start_over(self) -> None:
        """Begin again with the first epoch's batches, as if nothing had been trained; the first loss stays known."""
        self.inputs = self._new_inputs()
        self.steps_trained = 0
        self._losses.clear()

    def apply_process_settings(self) -> None:
        """Set PyTorch's process-wide settings as this cell asks for; another cell may have run in between."""
        torch.set_num_threads(self.cell.cpu_threads)
        step.set_switches(self.cell)

    def steps_in_window(self) -> int:
        """The number of steps that fill about a window, by the speed seen so far; one while nothing is known."""
        return 1 if self.step_seconds is None else steps_in(WINDOW_SECONDS, self.step_seconds)

    def take_step(self, raw: Raw) -> torch.Tensor:
        """Take one step, without waiting for the device; returns the loss, []."""
        loss = self.train_step(*raw)
        self._losses.append(loss)
        self.steps_trained += 1
        if self._first is None:
            self._first = raw, loss
        return loss

    @property
    def first_loss(self) -> float:
        """Loss of the first step in this process; waits for the device."""
        assert self._first is not None, "a visit comes first"
        return self._first[1].item()

    def recent_losses(self) -> list[float]:
        """Losses of the latest steps; waits for the device."""
        return [loss.item() for loss in self._losses]

    def agreed(self, steps: int) -> int:
        """What the first worker decides, by its own clock: all must take the same number of steps, or they deadlock."""
        if self.world == 1:
            return steps
        decision = torch.tensor(steps)
        torch.distributed.broadcast(decision, group=self.agreeing, group_src=0)
        return int(decision.item())

    def over_workers(self, usage: monitor.Usage) -> monitor.Usage:
        """What the trial used on all its machines: CPU seconds and energy of all workers, the rest as this one saw it.

        Each worker knows its own CPU time and GPU. The counters of a machine are read by all workers there, so each
        contributes its share of them.
        """
        if self.world == 1:
            return usage
        share = 1 / self.cell.workers_per_node
        shares = dict.fromkeys(("busy_cpu_seconds", "steal_cpu_seconds", "throttled_cpu_seconds"), share)
        shares |= {"cpu_seconds": 1.0, "energy_joules": share if self.device.type == "cpu" else 1.0}
        known = {name: getattr(usage, name) for name in shares}
        own = [math.nan if known[name] is None else known[name] * part for name, part in shares.items()]
        total = torch.tensor(own, device=self.device)
        torch.distributed.all_reduce(total, group=self.workers)
        sums = zip(shares, total.tolist(), strict=True)
        seen: dict[str, Any] = {name: None if math.isnan(value) else value for name, value in sums}
        return replace(usage, **seen)

    @contextlib.contextmanager
    def noting_memory(self) -> Iterator[None]:
        """Note the cell's peak memory while it trains in the block: its own tensors alone, on any device.

        The block must hold two steps or more, so that one begins with the gradients of another; and not the very first
        step, which makes the optimizer's state. What is freed in the block must have been allocated in it, since the
        profiler on a CPU does not know the size of anything older. Hence gradients are dropped before the block.
        """
        self.optimizer.zero_grad(set_to_none=True)
        own = sum(tensor.nbytes for tensor in self._lasting_tensors())
        if self.world > 1:  # the gradients, which stay in DDP's buckets for good
            own += sum(parameter.nbytes for parameter in self.network.parameters() if parameter.requires_grad)
        if self.device.type == "cuda":
            before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            yield
            peak = torch.cuda.max_memory_allocated(self.device) - before
            self.peak_memory_bytes = own + self.train_step.held_bytes + peak
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

    def state_dict_bytes(self) -> bytes:
        """The network's state_dict as `torch.save` writes it, on the CPU."""
        content = io.BytesIO()
        network: nn.Module = getattr(self.network, "module", self.network)  # DDP's wrapper is not the user's network
        state = network.state_dict()  # written over, not made anew: it also holds versions, which loading asks for
        state.update({name: value.cpu() for name, value in state.items() if torch.is_tensor(value)})
        torch.save(state, content)
        return content.getvalue()

    def trace(self, steps: int) -> bytes:
        """Take `steps` more steps; return the trace of PyTorch's profiler, gzipped JSON that Perfetto shows."""
        with torch.profiler.profile(record_shapes=True) as profile:
            for raw in itertools.islice(self.batches, steps):
                self.take_step(raw)
            synchronize(self.device)
        with scratch.folder() as folder:
            profile.export_chrome_trace(str(folder / "trace.json.gz"))
            return (folder / "trace.json.gz").read_bytes()

    def _paid(self, seconds: float) -> bool:
        """Whether the measured time so far covers what measuring something besides costs in all."""
        return bool(self.agreed(int(seconds <= CLOCKS_SHARE * self.measured_seconds)))

    def other_clocks(self) -> dict[str, Any]:
        """Measure the step alone and the input alone, if a quarter of the measured time so far covers the cost.

        The steps train the model like any others. Returns columns of a `Measurement`; none when it has to wait for more
        measured time.
        """
        assert self.step_seconds is not None
        assert self._first is not None
        steps = self.agreed(self.steps_in_window())
        cost = (steps + (self.device.type == "cuda")) * self.step_seconds + INPUT_CLOCK_SECONDS
        if not self._paid(self._clocks_seconds + cost):
            return {}
        start, before = time.perf_counter(), self._clocks_seconds
        self._clocks_seconds += cost  # at first an estimate, which stays if memory is too short for them
        batch = tuple(tensor.to(self.device) for tensor in self._first[0])
        clock = clocks.step_alone(self.train_step, self.optimizer, batch, steps)
        if self._clock_batches is None:  # its own stream: the cell's goes on where it was
            self._clock_batches = itertools.starmap(self.inputs.load, self._new_inputs().forever())
        rate = clocks.input_alone(self._clock_batches, INPUT_CLOCK_SECONDS)
        if cost + limits.LOOK_SECONDS <= CLOCKS_SHARE * self.measured_seconds - before:
            self.limit(look=True)
        self._clocks_seconds = before + time.perf_counter() - start
        bottleneck = clocks.bottleneck(
            clock,
            images=len(batch[0]),
            input_rate=rate,
            work=self.work,
            limits=self.limit(),
            communication_seconds=self._communication_seconds,
            fetched=self.cell.input != "resident",
            on_gpu=self.device.type == "cuda",
        )
        return {
            "compute_images_per_second": self.cell.global_batch_size / clock.seconds,
            "input_images_per_second": rate * self.world,
            "bottleneck": bottleneck,
            "optimizer_seconds": clock.optimizer_seconds,
            "launch_share": clock.launch_share,
        }

    def communication_seconds(self) -> float | None:
        """Seconds that exchanging gradients adds to a step; None for a single worker, or if it has to wait.

        Measured on the first visit, since scaling is judged by it, and again when a quarter of the measured time so far
        covers what this has cost.
        """
        if self.world == 1 or not self._paid(self._communication_clock_seconds):  # nothing is spent at first
            return None
        assert self._first is not None
        start, steps = time.perf_counter(), self.agreed(self.steps_in_window())
        batch = tuple(tensor.to(self.device) for tensor in self._first[0])
        self._communication_seconds = clocks.communication(self.train_step, batch, steps)
        self._communication_clock_seconds += time.perf_counter() - start
        return self._communication_seconds
