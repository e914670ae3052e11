"""A device that works on its own time is measured as it works in a loop without a clock."""

from itertools import count, islice
from types import SimpleNamespace

import pytest
import torch

from rresnet.training import timing, train
from rresnet.training.timing import WINDOW_SECONDS, Stopwatch, steps_in


class Gpu:
    """Takes what it is given one after the other, while the processor's clock goes its own way."""

    def __init__(self, monkeypatch):
        self.now = self.idle_from = 0.0  # of the processor, and of the GPU
        gpu = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = max(gpu.now, gpu.idle_from)

            def synchronize(self):
                gpu.now = max(gpu.now, self.at)

            def elapsed_time(self, other):
                assert gpu.now >= other.at, "not over yet: CUDA raises here"
                return 1000 * (other.at - self.at)

        monkeypatch.setattr(torch.cuda, "Event", Event)

    def batches(self, fetching, copying):
        """Fetched by the processor, then copied once the GPU is done with what it has."""
        for _ in count():
            self.now += fetching
            if copying:
                self.now = max(self.now, self.idle_from)
            yield (torch.empty(64),)

    def step(self, launching, computing):
        """Launched by the processor; begun when the GPU is free, and not over before all of it is launched."""
        begins = max(self.now, self.idle_from)
        self.now += launching
        self.idle_from = max(begins + computing, self.now)


def visit(gpu, fetching, launching, computing, copying, seconds=1.0):
    """Images a second of a visit to a cell that is warm, and its windows."""
    watch, told = Stopwatch(torch.device("cuda")), []
    bench = SimpleNamespace(device=torch.device("cuda"), world=1, agreed=lambda steps: steps)
    bench.batches = gpu.batches(fetching, copying)
    bench.step_seconds = fetching + launching + computing
    bench.steps_in_window = lambda: steps_in(WINDOW_SECONDS, bench.step_seconds)
    bench.take_step = lambda raw: gpu.step(launching, computing)
    assert train._warm_up(bench, watch)
    assert gpu.now <= gpu.idle_from  # the step goes on
    kept = []
    train._measure(bench, watch, SimpleNamespace(keep_up=lambda: kept.append(1)), seconds, told.append)
    assert len(kept) >= len(told) > 0  # a counter of energy may wrap within a long trial
    measured, _, images = watch.total("measured")
    assert seconds <= measured < seconds + 2 * max(WINDOW_SECONDS, 2 * bench.step_seconds)
    assert told[-1] == pytest.approx(images / measured, rel=0.5)
    assert [window.kind for window in watch.windows[:2]] == ["warmup", "measured"]
    return images / measured


def plain(gpu, fetching, launching, computing, copying, steps=1000):
    """Images a second of a loop without a clock."""
    batches, began = gpu.batches(fetching, copying), gpu.now
    for _ in islice(batches, steps):
        gpu.step(launching, computing)
    return 64 * steps / (max(gpu.now, gpu.idle_from) - began)


@pytest.mark.parametrize("copying", [False, True])
@pytest.mark.parametrize(
    "step",
    [
        (0.005, 0.018, 0.010),  # launching takes longest
        (0.036, 0.018, 0.050),
        (0.072, 0.018, 0.100),  # a window is one step
        (0.040, 0.018, 0.083),
        (0.300, 0.018, 0.200),  # fetching does
        (0.0001, 0.018, 0.100),  # the images lie there
    ],
)
def test_a_window_hides_what_a_loop_without_a_clock_hides(monkeypatch, step, copying):
    gpu = Gpu(monkeypatch)
    measured = visit(gpu, *step, copying)
    assert measured == pytest.approx(plain(gpu, *step, copying), rel=0.01)


def test_the_last_window_of_a_gpu_is_kept_when_it_is_read(monkeypatch):
    gpu = Gpu(monkeypatch)
    watch, batches = Stopwatch(torch.device("cuda")), gpu.batches(0.01, False)
    for given in range(3):
        assert len(watch.windows) == max(0, given - 1)
        for _ in watch.window(batches, 2, "measured", epoch=given):
            gpu.step(0.01, 0.5)
    assert gpu.now < 2.5 < gpu.idle_from  # it is not waited for what was given last
    watch.read()
    assert [window.epoch for window in watch.windows] == [0, 1, 2]
    assert gpu.now == pytest.approx(6 * 0.5, abs=0.1)
    assert sum(window.seconds for window in watch.windows) == pytest.approx(gpu.now - watch.windows[0].started_seconds)
    assert [window.window for window in watch.windows] == [0, 1, 2]


def test_marks_of_a_processor_are_its_clock():
    clock = iter([1.0, 3.5])
    a, b = (timing.mark(torch.device("cpu"), lambda: next(clock)) for _ in range(2))
    assert timing.between(a, b) == 2.5
