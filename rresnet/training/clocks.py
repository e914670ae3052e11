"""The two other clocks of a cell, for its step alone and its input alone; and from all three, its bottleneck."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from rresnet.training.inputs import Batch, Raw
from rresnet.training.limits import Limits, Work
from rresnet.training.step import Eager, Step
from rresnet.training.timing import between, mark, seconds_of, synchronize

COMMUNICATION_TURNS = 3
LATENCY_BOUND = 0.5  # share of the network's time on a GPU: if moving and computing explain less, neither bounds it
LAUNCH_BOUND = 0.9  # share of a step in which the CPU was still launching it: from this on, launching bounds it


@dataclass(frozen=True, kw_only=True)
class StepClock:
    """The step alone, on one batch that stays on the device."""

    seconds: float  # of one step, when steps are given to the device one after another
    optimizer_seconds: float | None  # of that in optimizer.step; None where the step doesn't call it (a graph)
    launch_seconds: float | None  # until the CPU had launched all of a single step; None where it can't be told
    launch_share: float | None  # the same as a share of that step


def step_alone(step: Eager, optimizer: torch.optim.Optimizer, batch: Raw, steps: int) -> StepClock:
    """Time `steps` steps on `batch`, which is on the device; on a GPU also a single one, for the share of launching.

    If the step itself waits for the GPU, as the loss scaler does with an optimizer that is not fused, the time spent
    launching can't be told.
    """
    waits = step.scaler.is_enabled() and not optimizer.defaults.get("fused")
    device = batch[0].device
    marks: list[Any] = []
    hooks = [
        optimizer.register_step_pre_hook(lambda *_: marks.append(mark(device))),
        optimizer.register_step_post_hook(lambda *_: marks.append(mark(device))),
    ]
    try:
        seconds = seconds_of(device, lambda: step(*batch), steps)
    finally:
        for hook in hooks:
            hook.remove()
    spent = [between(a, b) for a, b in zip(marks[::2], marks[1::2], strict=True)]
    launched, single = _launched(step, batch) if device.type == "cuda" and not waits else (None, 1.0)
    return StepClock(
        seconds=seconds,
        optimizer_seconds=sum(spent) / steps if spent else None,
        launch_seconds=launched,
        launch_share=None if launched is None else launched / single,
    )


def _launched(step: Step, batch: Raw) -> tuple[float, float]:
    """Seconds until the CPU had launched all of a single step, and until it was over."""
    start = time.perf_counter()
    step(*batch)
    launched = time.perf_counter() - start
    synchronize(batch[0].device)
    return launched, time.perf_counter() - start


def communication(step: Eager, batch: Raw, steps: int) -> float:
    """Seconds that exchanging gradients adds to a DDP model's forward and backward pass: the median of a few turns.

    In each turn `steps` passes exchange gradients and as many do not. Nothing is trained: gradients that were not
    exchanged would drive the workers' weights apart.
    """
    network: Any = step.model

    def passes(count: int) -> float:
        seconds = seconds_of(batch[0].device, lambda: torch.autograd.backward(step.forward(*batch)), count)
        step.optimizer.zero_grad(set_to_none=True)
        return seconds

    passes(1)
    added = []
    for _ in range(COMMUNICATION_TURNS):
        together = passes(steps)
        with network.no_sync():
            added.append(together - passes(steps))
    return max(0.0, median(added))


def input_alone(batches: Iterator[Batch], seconds: float) -> float:
    """Images a second of the input path alone, over about `seconds`, at least one batch."""
    count, start = 0, time.perf_counter()
    for images, labels in batches:
        count += len(labels)
        synchronize(images.device)
        if time.perf_counter() - start >= seconds:
            break
    return count / (time.perf_counter() - start)


def bottleneck(
    clock: StepClock,
    *,
    images: int,
    input_rate: float,
    work: Work | None,
    limits: Limits,
    communication_seconds: float = 0.0,
    fetched: bool = True,
    on_gpu: bool = False,
) -> str | None:
    """The largest part of a step, or what bounds the network if that is it; the rule is in `docs/measurement.md`.

    `images` is the number of images in a step and `input_rate` is in images a second; `fetched` says whether the CPU
    fetches the images, which it does not if they are resident. None if too little is known: without the work of an
    image, memory and compute can't be told apart.
    """
    optimizer, supply = clock.optimizer_seconds or 0.0, images / input_rate
    launch = clock.launch_seconds
    if fetched and launch is not None and supply + launch > clock.seconds:
        return "input" if supply > launch else "launch"  # one thread does both, and the GPU waits for it
    parts = {
        "input": supply,
        "optimizer": optimizer,
        "communication": communication_seconds,
        "network": clock.seconds - optimizer - communication_seconds,
    }
    largest = max(parts, key=lambda name: parts[name])
    if largest == "input":
        return "input"
    if clock.launch_share is not None and clock.launch_share >= LAUNCH_BOUND:
        return "launch"
    if largest in ("optimizer", "communication"):
        return largest
    if work is None:
        return None
    # If the step doesn't call the optimizer, its part can't be separated from the network's.
    moved = images * work.bytes + (work.update_bytes if clock.optimizer_seconds is None else 0.0)
    computing, moving = images * work.flops / limits.matrix_flops_per_second, moved / limits.copy_bytes_per_second
    if on_gpu and computing + moving < LATENCY_BOUND * parts["network"]:
        return "latency"
    return "memory" if moving > computing else "compute"
