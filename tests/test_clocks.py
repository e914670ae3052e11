"""What exchanging gradients takes, by a clock that only the passes move."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from rresnet.training import clocks, workbench


class Passes:
    """A step whose passes take the seconds given, one after the other, and less where gradients are not exchanged."""

    def __init__(self, monkeypatch, computing, exchanging):
        self.now, self.exchanges, self.exchanging, self.taken = 0.0, True, exchanging, 0
        self.computing = iter(computing)
        self.model = SimpleNamespace(no_sync=self.no_sync)
        self.optimizer = SimpleNamespace(zero_grad=lambda set_to_none: None)
        monkeypatch.setattr(clocks.time, "perf_counter", lambda: self.now)

    @contextlib.contextmanager
    def no_sync(self):
        self.exchanges = False
        yield
        self.exchanges = True

    def forward(self, images):
        self.taken += 1
        self.now += next(self.computing) + (self.exchanging if self.exchanges else 0)
        return torch.ones((), requires_grad=True) * 1.0


def test_communication_is_what_exchanging_adds_to_a_pass(monkeypatch):
    step = Passes(monkeypatch, [1.0] * 100, exchanging=0.25)
    assert clocks.communication(step, (torch.zeros(1),), 2) == pytest.approx(0.25)
    assert step.taken == 1 + 2 * 2 * clocks.COMMUNICATION_TURNS


def test_one_turn_that_was_disturbed_does_not_decide(monkeypatch):
    disturbed = [1.0, 9.0, *[1.0] * 100]  # the first measured pass
    step = Passes(monkeypatch, disturbed, exchanging=0.25)
    assert clocks.communication(step, (torch.zeros(1),), 1) == pytest.approx(0.25)


def test_communication_is_never_negative(monkeypatch):
    faster = [1.0, *[1.0, 2.0] * 100]  # passes that exchange take less than those that do not
    step = Passes(monkeypatch, faster, exchanging=0.0)
    assert clocks.communication(step, (torch.zeros(1),), 1) == 0.0


def test_the_exchange_is_timed_on_the_first_visit_and_when_measured_time_has_paid_for_it(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(workbench.time, "perf_counter", lambda: next(now))  # timing takes a second
    monkeypatch.setattr(workbench.clocks, "communication", lambda step, batch, steps: 0.25)
    cell = object.__new__(workbench.Workbench)
    cell.world, cell.agreed, cell.steps_in_window = 2, lambda steps: steps, lambda: 1
    cell.device, cell.train_step, cell._first = torch.device("cpu"), None, ((), None)
    found = []
    for measured in range(1, 11):  # seconds so far
        cell.measured_seconds = measured
        found.append(cell.communication_seconds())
    assert [at for at, seconds in enumerate(found, 1) if seconds == 0.25] == [1, 4, 8]
    assert found.count(None) == 7
    cell.world = 1
    assert cell.communication_seconds() is None


@pytest.mark.parametrize(("scaled", "fused", "told"), [(True, False, False), (True, True, True), (False, False, True)])
def test_how_long_a_step_launches_is_not_told_where_the_step_itself_waits(monkeypatch, scaled, fused, told):
    """The loss scaler waits for the GPU, unless the optimizer is fused."""

    class Step:
        scaler = SimpleNamespace(is_enabled=lambda: scaled)

        def __call__(self, *batch):
            return None

    monkeypatch.setattr(clocks, "_launched", lambda *_: (0.01, 0.02))
    monkeypatch.setattr("rresnet.training.timing.synchronize", lambda device: None)
    batch = (SimpleNamespace(device=torch.device("cuda")),)
    optimizer = torch.optim.Adam([torch.ones(1, requires_grad=True)], fused=fused)
    assert clocks.step_alone(Step(), optimizer, batch, 1).launch_share == (0.5 if told else None)
