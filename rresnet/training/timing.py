"""An honest clock: windows of steps, with the device synchronised at their edges."""

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Literal

import torch

from rresnet.tables.measurement import Window
from rresnet.training.inputs import Raw

WINDOW_SECONDS = 0.1


class Stopwatch:
    """Times windows of batches and keeps them.

    A window is a number of steps fixed beforehand, so that nothing has to ask the device how far it is. Fetching the
    batches is inside the window: the input path is part of training.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self._device, self._clock = device, clock
        self._zero = clock()
        self.windows: list[Window] = []

    def window(
        self,
        batches: Iterator[Raw],
        steps: int,
        kind: Literal["warmup", "measured"],
        *,
        epoch: int | None = None,
        world: int = 1,
    ) -> Iterator[Raw]:
        """Yield up to `steps` batches; the time from before the first to after the last step is one window."""
        synchronize(self._device)
        start, images, taken = self._clock(), 0, 0
        for batch in islice(batches, steps):
            yield batch
            images += len(batch[0]) * world
            taken += 1
        if not taken:
            return
        synchronize(self._device)
        seconds = self._clock() - start
        number = len(self.windows)
        self.windows.append(
            Window(
                window=number,
                kind=kind,
                epoch=epoch,
                started_seconds=start - self._zero,
                seconds=seconds,
                steps=taken,
                images=images,
            )
        )

    def total(self, kind: Literal["warmup", "measured"]) -> tuple[float, int, int]:
        """Seconds, steps and images of all windows of a kind."""
        chosen = [w for w in self.windows if w.kind == kind]
        return sum(w.seconds for w in chosen), sum(w.steps for w in chosen), sum(w.images for w in chosen)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(device: torch.device, call: Callable[[], object], times: int = 1) -> float:
    """Mean seconds of a call that is made so many times, the device synchronised at both ends."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(times):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / times


def steps_in(seconds: float, step_seconds: float) -> int:
    """How many steps of `step_seconds` fill `seconds`, at least one."""
    return max(1, round(seconds / step_seconds))
