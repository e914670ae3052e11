import itertools
import os
import pickle
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError
from samples import make_cell

from rresnet.cell import Trial
from rresnet.config import How
from rresnet.data import ImageData, Split
from rresnet.runner import group, hot, lane, sweep, trial
from rresnet.runner.layout import Layout
from rresnet.tables.measurement import Environment, Measurement
from rresnet.tables.runs import Run
from rresnet.training.train import Record


@pytest.fixture
def images():
    split = Split(images=np.zeros((8, 1, 32, 32), np.uint8), labels=np.arange(8, dtype=np.int64) % 2)
    return ImageData(train=split, test=split, classes=("a", "b"), fingerprint="f")


def built(cell):
    """Stands for the cell's workbench."""
    return SimpleNamespace(cell=cell)


def test_a_hot_cell_is_built_once_and_one_that_trains_epochs_each_time():
    cells, one, other = hot.HotCells(), make_cell(), make_cell(batch_size=4)
    first = cells.bench(one, lambda: built(one))
    assert cells.bench(one, lambda: built(one)) is first
    assert cells.bench(other, lambda: built(other)).cell == other
    assert (cells.count, one in cells, other in cells) == (2, True, True)
    whole = make_cell(epochs=1)
    again = [cells.bench(whole, lambda: built(whole)) for _ in range(2)]
    assert again[0] is not again[1]
    assert (cells.count, whole in cells) == (2, False)


def test_the_least_recently_used_cell_is_dropped_first():
    cells = hot.HotCells()
    a, b, c = (make_cell(batch_size=size) for size in (2, 4, 8))
    for cell in (a, b, c, a):
        cells.bench(cell, lambda cell=cell: built(cell))
    cells.drop()
    assert [cell in cells for cell in (a, b, c)] == [True, False, True]


def test_what_is_cleared_leaves_no_cell_and_no_data_on_the_device(images):
    cells = hot.HotCells()
    cells.bench(make_cell(), lambda: built(make_cell()))
    hot.inputs.resident(images.train, torch.device("cpu"))
    assert hot.inputs.resident.cache_info().currsize
    cells.clear()
    assert (cells.count, hot.inputs.resident.cache_info().currsize) == (0, 0)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("x"), "error"),
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out_of_memory"),
        (SystemExit(3), "error"),
    ],
)
def test_failures_are_told_apart(error, status):
    found = trial.failure(error)
    assert (found.status, found.error_type) == (status, type(error).__name__)
    assert found.error_message


def test_a_failure_in_a_worker_is_told_as_the_workers():
    class WorkerGroupError(Exception):
        worker_failures = {1: ValueError("inner")}  # noqa: RUF012

    found = trial.failure(WorkerGroupError("outer"))
    assert (found.error_type, found.error_message) == ("ValueError", "inner")


def of_a_worker_group(*failures):
    """As Ray Train tells what became of workers 0, 1, ..., of which None is well."""
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    told = {
        rank: WorkerHealthCheckFailedError("A worker health check failed.", failure=one)
        if isinstance(one, RayError)
        else one
        for rank, one in enumerate(failures)
        if one
    }
    return WorkerGroupError("outer", told)


def died(account):
    """Ray's error of an actor, with what is known of its end."""
    error = ActorDiedError()
    error.error_msg += account
    return error


@pytest.mark.parametrize(
    ("error", "elapsed", "status"),
    [
        (died(""), 3.0, "killed"),
        (died("\nThe actor is dead because its node has died."), 3.0, "killed"),
        (died("\nThe actor is dead because its worker process has died."), 10.0, "timeout"),  # its watchdog's doing
        (OutOfMemoryError("the node runs low on memory"), 3.0, "out_of_memory"),
    ],
)
def test_a_worker_whose_process_ended_is_told_as_a_trial_process(error, elapsed, status):
    for failures in ((error,), (None, error), (RuntimeError("Connection closed by peer"), error)):
        found = trial.failure(of_a_worker_group(*failures), elapsed, 10.0)
        assert found.status == status
        assert str(error)[:30] in found.output_tail
    assert trial.failure(of_a_worker_group(RuntimeError("no peer")), elapsed, 10.0).status == "error"


@pytest.mark.parametrize(
    ("text", "elapsed", "status"),
    [
        ("The actor is dead because its worker process has died.", 3.0, "killed"),
        ("The actor is dead because its worker process has died.", 10.0, "timeout"),
        ("The actor b2 is unavailable: The actor is temporarily unavailable: Socket closed", 3.0, "killed"),
        ("Task was killed due to the node running low on memory. has died", 3.0, "out_of_memory"),
        ("RuntimeError: failed to import", 3.0, "error"),
    ],
)
def test_a_death_without_a_word_is_told_from_rays_account(text, elapsed, status):
    assert lane.death(text, elapsed, 10.0).status == status


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
        one = Trial(cell=cell, repeat=0, process=0).to_json()
        there = {kind: Layout(device=kind, nodes=("a",) * workers, cores=1) for kind in groups}
        trial.run({"trial": one, "nodes": ("a", "b"), "groups": there, "is_last": is_last}, How(seconds=1.0), [None])
        return told[-1]["outcome"][0]

    return SimpleNamespace(told=told, asked=asked, run=run)


AB = ("a", "b")


def test_a_worker_group_trains_until_the_last_trial(process):
    for batch_size in (1, 2, 1):
        process.run(batch_size, is_last=len(process.asked) == 4)
    assert process.asked == ["starts", "is up", (1, AB), (2, AB), (1, AB), "ends"]
    assert trial._GROUPS["cpu"].those == Layout(device="cpu", nodes=("a", "a"), cores=1)


def test_groups_of_both_devices_are_up_before_anything_is_measured_and_end_with_the_last_trial(process, monkeypatch):
    monkeypatch.setattr(trial, "_fit", lambda *of: process.asked.append("trains") or Record(measurement=OK))
    both = ("cpu", "gpu")
    process.run(1, num_workers=1, groups=both)
    process.run(2, num_workers=1, groups=both, is_last=True)
    assert process.asked == ["starts", "starts", "is up", "is up", "trains", "trains", "ends", "ends"]
    assert {kind: group.those.device for kind, group in trial._GROUPS.items()} == {kind: kind for kind in both}


def test_a_group_that_has_ended_between_two_trials_costs_neither(process):
    process.run(1)
    trial._GROUPS["cpu"].ended = True  # the kernel has killed an idle worker, say
    assert process.run(2)["record"]["measurement"]["status"] == "ok"
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
    with pytest.raises(lane.TrialProcessSpentError):
        process.run(3)
    assert process.asked[-1] == "ends"
    assert process.told[-1]["outcome"][0]["record"]["measurement"]["error_message"] == "a worker failed"


def test_workers_that_do_not_start_are_the_error_of_a_trial_that_needs_them(process, monkeypatch):
    def never(self):
        self.asked.append("does not start")
        raise TimeoutError("no place for the workers")

    monkeypatch.setattr(FakeGroup, "wait_until_up", never)
    fit = trial._fit
    monkeypatch.setattr(
        trial, "_fit", lambda cell, *of: fit(cell, *of) if cell.num_workers > 1 else Record(measurement=OK)
    )
    assert process.run(1, num_workers=1)["record"]["measurement"]["status"] == "ok"
    assert process.run(1, num_workers=1)["record"]["measurement"]["status"] == "ok"
    with pytest.raises(lane.TrialProcessSpentError):
        process.run(1)
    found = process.told[-1]["outcome"][0]["record"]["measurement"]
    assert (found["status"], found["error_message"]) == ("error", "no place for the workers")
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
    monkeypatch.setattr(trial, "_fit", lambda *of: Record(measurement=OK))
    given = {"num_workers": num_workers, "groups": groups, "workers": workers}
    assert process.run(1, **given)["alone"] == alone
    assert not process.run(2, **given)["alone"]


def test_where_memory_is_short_this_process_drops_its_cells_first_and_then_the_workers_theirs(process, monkeypatch):
    process.run(1)
    for size in (2, 4):
        trial._HOT.bench(make_cell(batch_size=size), lambda: built(None))
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


def workers(*answers):
    """A worker group whose workers answer so, and the requests that it has made."""
    requests, given = [], iter(answers)
    those = object.__new__(group.WorkerGroup)
    those._hot, those._free_memory = set(), 1.0
    those._answer_to = lambda request: requests.append(request) or next(given)
    return those, requests


def answer(free_memory):
    return pickle.dumps((Record(measurement=Measurement(status="ok")), free_memory))


def test_workers_that_do_not_answer_in_time_are_told():
    those, _ = workers()
    del those._answer_to
    silent = SimpleNamespace(remote=lambda *of: SimpleNamespace(future=Future))
    those._exchange, those._asked = SimpleNamespace(ask=silent, answered=silent), itertools.count()
    those._ended = Future()
    with pytest.raises(TimeoutError, match=r"did not answer within 0\.01 s"):
        those._answer_to("forget", timeout=0.01)
    those._ended.set_exception(ValueError("a worker has died"))
    with pytest.raises(ValueError, match="a worker has died"):
        those._answer_to("forget")
    assert those.ended


def test_workers_forget_before_another_cell_where_any_of_them_was_short_of_memory():
    one, other, whole = make_cell(num_workers=2), make_cell(num_workers=2, batch_size=4), make_cell(epochs=1)
    those, requests = workers(answer(0.2), answer(0.2), b"", answer(0.3), answer(0.3))
    for cell in (one, one, other, whole):
        those.train(cell, ("a", "a"))
    assert [request if request == "forget" else request.cell for request in requests] == [
        *(one, one), "forget", other, whole  # one is hot the second time
    ]  # fmt: skip
    assert (one in those, other in those, whole in those, those.count) == (False, True, False, 1)


def test_rows_join_on_the_trial():
    planned = Trial(cell=make_cell(num_workers=2), repeat=3, process=1)
    run = Run(run_id="r", experiment="compare", name="n", plan_id="p", planned=1, started_at="")
    record = {"windows": [{"window": 0}], "epochs": [{"epoch": 0}]}
    rows = sweep.rows_of(
        run, planned, vars(Measurement(status="ok")), attempt=2, known={"hostname": "h"}, record=record
    )
    row = rows["trials"][0]
    assert (row["trial_id"], row["repeat"], row["process"], row["attempt"]) == (planned.trial_id, 3, 1, 2)
    assert (row["global_batch_size"], row["hostname"], row["started_at"]) == (16, "h", None)
    assert rows["windows"] == [{"run_id": "r", "trial_id": planned.trial_id, "window": 0}]
    assert rows["epochs"][0]["trial_id"] == planned.trial_id


def test_a_trial_process_notes_the_commit_before_its_first_trial_and_then_says_that_it_is_ready(process, monkeypatch):
    told = process.told
    monkeypatch.setattr(
        trial, "_fit", lambda *of: told.append("trained") or Record(measurement=Measurement(status="ok"))
    )
    for _ in range(2):
        process.run(1, num_workers=1, groups=())
    events = [one if isinstance(one, str) else next(iter(one)) for one in told]
    assert events == ["commit", "process_id", "trained", "outcome", "trained", "outcome"]
