"""An honest clock: windows of steps, on the time line of the device that takes them."""

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Literal

import torch

from rresnet.tables.measurement import Window
from rresnet.training.inputs import Raw

WINDOW_SECONDS = 0.1


class Stopwatch:
    """Times windows of batches and keeps them.

    A window is a number of steps fixed beforehand, so that nothing has to ask the device how far it is. Fetching the
    batches is inside the window: the input path is part of training. A GPU's windows are timed by events on its own
    time line. The CPU waits for the GPU only once a window, for the end of the previous one: while the GPU computes,
    the CPU fetches the next batch, as in a loop without a clock. So the last window given to a GPU is kept only when
    the next one has been given to it, or by `read`.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self._device, self._clock = device, clock
        self._zero = mark(device, clock)
        self._given: list[tuple[Any, Any, dict[str, Any]]] = []  # marks of start and end, and what else is known
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
        start, images, taken = mark(self._device, self._clock), 0, 0
        for batch in islice(batches, steps):
            yield batch
            images += len(batch[0]) * world
            taken += 1
        if not taken:
            return
        told = {"kind": kind, "epoch": epoch, "steps": taken, "images": images}
        self._given.append((start, mark(self._device, self._clock), told))
        self.read(running=1 if self._device.type == "cuda" else 0)

    def read(self, running: int = 0) -> None:
        """Keep the windows that were given to the device, except the last `running`; waits until they are over."""
        while len(self._given) > running:
            start, end, told = self._given.pop(0)
            seconds, started = between(start, end), between(self._zero, start)
            self.windows.append(Window(window=len(self.windows), started_seconds=started, seconds=seconds, **told))

    def total(self, kind: Literal["warmup", "measured"]) -> tuple[float, int, int]:
        """Seconds, steps and images of all windows of a kind."""
        chosen = [w for w in self.windows if w.kind == kind]
        return sum(w.seconds for w in chosen), sum(w.steps for w in chosen), sum(w.images for w in chosen)


def mark(device: torch.device, clock: Callable[[], float] = time.perf_counter) -> Any:
    """Mark the present: the clock's time, or an event on the GPU's own time line, which waits for nothing."""
    if device.type != "cuda":
        return clock()
    event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def between(a: Any, b: Any) -> float:
    """Seconds from one mark to another; waits until the GPU has reached the second."""
    if isinstance(a, float):
        return float(b - a)
    b.synchronize()
    return float(a.elapsed_time(b)) / 1000


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(device: torch.device, call: Callable[[], object], times: int = 1) -> float:
    """Mean seconds of a call that is made `times` times, with the device synchronised at both ends."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(times):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / times


def steps_in(seconds: float, step_seconds: float) -> int:
    """How many steps of `step_seconds` fill `seconds`, at least one."""
    return max(1, round(seconds / step_seconds))
