"""The trial process, without Ray: its worker groups, its memory, what it tells."""

import itertools
import os
from types import SimpleNamespace

import pytest
from samples import make_cell

from rresnet.cell import Trial
from rresnet.config import How
from rresnet.runner import failures, hot, trial
from rresnet.runner.layout import Layout
from rresnet.tables.measurement import Environment, Measurement, Record

OK = Measurement(status="ok")


class FakeGroup:
    """A worker group that trains at once; what it is asked stands in `asked`."""

    def __init__(self, asked, those=None):
        self.asked, self.count, self.those, self.ended = asked, 0, those, False
        asked.append("starts")

    def __contains__(self, cell):
        return False

    def train(self, cell, nodes):
        self.asked.append((cell.batch_size, nodes))
        self.count += 1
        if cell.batch_size == 3:
            raise ValueError("a worker failed")
        return Record(measurement=OK)

    def wait_until_up(self):
        self.asked.append("is up")

    def forget(self):
        self.asked.append("forgets")
        self.count = 0

    def end(self):
        self.asked.append("ends")
        self.ended = True


@pytest.fixture
def process(monkeypatch):
    """A trial process with nothing in it yet: what it has told, what it has asked worker groups, and how to run one."""
    told, asked = [], []
    monkeypatch.setattr(trial, "_HOT", hot.HotCells())
    monkeypatch.setattr(trial, "_GROUPS", {})
    monkeypatch.setattr(trial, "WorkerGroup", lambda those, how, data: FakeGroup(asked, those))
    monkeypatch.setattr(trial, "free_memory_share", lambda device: 1.0)
    monkeypatch.setattr(trial.environment, "git_commit", lambda: told.append("commit"))
    monkeypatch.setattr(trial.environment, "describe", lambda device: Environment())
    monkeypatch.setattr(trial.tune, "report", told.append)
    monkeypatch.setattr(trial, "_TRIALS", itertools.count())
    monkeypatch.setattr(trial, "give_back", lambda cell: None)

    monkeypatch.setattr(trial, "_FAILED", {})

    def run(batch_size, num_workers=2, is_last=False, device="cpu", groups=("cpu",), workers=2):
        cell = make_cell(batch_size=batch_size, num_workers=num_workers, device=device)
        one = Trial(cell=cell, repeat=0, process=0)
        there = {kind: Layout(device=kind, nodes=("a",) * workers, cores=1) for kind in groups}
        trial.run({"trial": one, "nodes": ("a", "b"), "groups": there, "is_last": is_last}, How(seconds=1.0), [None])
        return told[-1]["outcome"]

    return SimpleNamespace(told=told, asked=asked, run=run)


AB = ("a", "b")


def test_a_worker_group_trains_until_the_last_trial(process):
    for batch_size in (1, 2, 1):
        process.run(batch_size, is_last=len(process.asked) == 4)
    assert process.asked == ["starts", "is up", (1, AB), (2, AB), (1, AB), "ends"]
    assert trial._GROUPS["cpu"].those == Layout(device="cpu", nodes=("a", "a"), cores=1)


def test_groups_of_both_devices_are_up_before_anything_is_measured_and_end_with_the_last_trial(process, monkeypatch):
    monkeypatch.setattr(trial, "_train", lambda *of: process.asked.append("trains") or Record(measurement=OK))
    both = ("cpu", "gpu")
    process.run(1, num_workers=1, groups=both)
    process.run(2, num_workers=1, groups=both, is_last=True)
    assert process.asked == ["starts", "starts", "is up", "is up", "trains", "trains", "ends", "ends"]
    assert {kind: group.those.device for kind, group in trial._GROUPS.items()} == {kind: kind for kind in both}


def test_a_group_that_has_ended_between_two_trials_costs_neither(process):
    process.run(1)
    trial._GROUPS["cpu"].ended = True  # the kernel has killed an idle worker, say
    assert process.run(2)[0].measurement.status == "ok"
    assert process.asked == ["starts", "is up", (1, AB), "starts", "is up", (2, AB)]


def test_that_workers_start_is_told_and_the_clock_starts_anew_when_they_are_up(process):
    process.run(1)
    process.run(1)
    events = [one if isinstance(one, str) else next(iter(one)) for one in process.told]
    assert events == ["commit", "process_id", "workers_to_start", "process_id", "outcome", "outcome"]
    assert process.told[2] == {"workers_to_start": 2}
    assert [one for one in process.told if one != "commit" and "process_id" in one] == [{"process_id": os.getpid()}] * 2


def test_after_a_trial_that_failed_the_workers_are_let_go(process):
    process.run(1)
    with pytest.raises(failures.TrialProcessSpentError):
        process.run(3)
    assert process.asked[-1] == "ends"
    assert process.told[-1]["outcome"][0].measurement.error_message == "a worker failed"


def test_workers_that_do_not_start_are_the_error_of_a_trial_that_needs_them(process, monkeypatch):
    def never(self):
        self.asked.append("does not start")
        raise TimeoutError("no place for the workers")

    monkeypatch.setattr(FakeGroup, "wait_until_up", never)
    train = trial._train
    monkeypatch.setattr(
        trial, "_train", lambda cell, *of: train(cell, *of) if cell.num_workers > 1 else Record(measurement=OK)
    )
    assert process.run(1, num_workers=1)[0].measurement.status == "ok"
    assert process.run(1, num_workers=1)[0].measurement.status == "ok"
    with pytest.raises(failures.TrialProcessSpentError):
        process.run(1)
    found = process.told[-1]["outcome"][0].measurement
    assert (found.status, found.error_message) == ("error", "no place for the workers")
    assert process.asked == ["starts", "does not start", "ends"]  # not tried at each trial


@pytest.mark.parametrize(
    ("num_workers", "workers", "groups", "alone"),
    [
        (1, 2, (), True),
        (2, 2, ("cpu",), True),
        (1, 2, ("cpu",), False),
        (2, 4, ("cpu",), False),  # two others wait
        (2, 2, ("cpu", "gpu"), False),
    ],
)
def test_the_first_trial_of_a_process_is_alone_unless_workers_that_it_does_not_use_are_there(
    num_workers, workers, groups, alone, process, monkeypatch
):
    monkeypatch.setattr(trial, "_train", lambda *of: Record(measurement=OK))
    given = {"num_workers": num_workers, "groups": groups, "workers": workers}
    assert process.run(1, **given)[1] == alone
    assert not process.run(2, **given)[1]


def test_where_memory_is_short_this_process_drops_its_cells_first_and_then_the_workers_theirs(process, monkeypatch):
    process.run(1)
    for size in (2, 4):
        trial._HOT.bench(make_cell(batch_size=size), lambda: SimpleNamespace())
    free = iter([0.1, 0.24, 0.25])  # short until both are dropped
    monkeypatch.setattr(trial, "free_memory_share", lambda device: next(free, 0.25))
    process.run(2)
    assert (trial._HOT.count, process.asked.count("forgets")) == (0, 0)
    monkeypatch.setattr(trial, "free_memory_share", lambda device: 0.2)
    process.run(4)
    assert process.asked[-2:] == ["forgets", (4, AB)]


def test_no_room_is_made_for_what_is_hot(process, monkeypatch):
    process.run(1)
    monkeypatch.setattr(FakeGroup, "__contains__", lambda self, cell: True)
    monkeypatch.setattr(trial, "free_memory_share", lambda device: 0.0)
    process.run(1)
    assert process.asked.count("forgets") == 0


def test_a_trial_process_notes_the_commit_before_its_first_trial_and_then_says_that_it_is_ready(process, monkeypatch):
    told = process.told
    monkeypatch.setattr(
        trial, "_train", lambda *of: told.append("trained") or Record(measurement=Measurement(status="ok"))
    )
    for _ in range(2):
        process.run(1, num_workers=1, groups=())
    events = [one if isinstance(one, str) else next(iter(one)) for one in told]
    assert events == ["commit", "process_id", "trained", "outcome", "trained", "outcome"]


@pytest.mark.parametrize(
    ("given", "kept"), [("2,10,0", "0,2,10"), ("GPU-b,GPU-a", "GPU-a,GPU-b"), ("1", "1"), ("", ""), (None, None)]
)
def test_the_first_gpu_of_every_trial_process_is_the_same(process, monkeypatch, given, kept):
    """Ray names the GPUs of a process in the order of a set of strings, which differs from process to process."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    monkeypatch.setattr(trial, "_train", lambda *of: Record(measurement=OK))
    process.run(1, num_workers=1, groups=())
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == kept
