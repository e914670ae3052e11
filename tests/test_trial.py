import itertools
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
from rresnet.runner import group, lane, sweep, trial
from rresnet.tables.measurement import Environment, Measurement
from rresnet.tables.runs import Run
from rresnet.training.train import Record


@pytest.fixture
def images():
    split = Split(images=np.zeros((8, 1, 32, 32), np.uint8), labels=np.arange(8, dtype=np.int64) % 2)
    return ImageData(train=split, test=split, classes=("a", "b"), fingerprint="f")


def test_a_hot_cell_is_built_once(images):
    hot = trial._HotCells()
    first = hot.bench(make_cell(), images)
    assert hot.bench(make_cell(), images) is first
    assert hot.bench(make_cell(batch_size=4), images) is not first


def test_the_least_recently_used_cell_goes_when_memory_is_short(images, monkeypatch):
    hot = trial._HotCells()
    a, b, c = (make_cell(batch_size=size) for size in (2, 4, 8))
    hot.bench(a, images)
    hot.bench(b, images)
    kept = hot.bench(a, images)  # now b is the one longest unused
    free = iter([0.1, 0.9])  # short until one cell is gone
    monkeypatch.setattr(trial, "_free_memory_share", lambda cell: next(free))
    hot.bench(c, images)
    assert list(hot.benches) == [a.cell_id, c.cell_id]
    assert hot.benches[a.cell_id] is kept


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


@pytest.fixture
def groups(monkeypatch):
    """What worker groups are asked for: with a number for each group, and whether one can train what it is asked."""
    asked, numbers = [], itertools.count()

    class Group:
        fits = True

        def __init__(self, cell, how, data, nodes):
            self.number = next(numbers)
            asked.append((self.number, "starts"))

        def can_train(self, cell):
            return self.fits

        def train(self, cell):
            asked.append((self.number, cell.batch_size))
            if cell.batch_size == 3:
                raise ValueError("a worker failed")
            return "a record"

        def end(self):
            asked.append((self.number, "ends"))

    monkeypatch.setattr(trial, "WorkerGroup", Group)
    monkeypatch.setattr(trial, "_GROUP", None)
    return SimpleNamespace(asked=asked, kind=Group)


def in_group(batch_size, stays):
    config = {"nodes": [], "group_stays": stays}
    return trial._in_group(make_cell(num_workers=2, batch_size=batch_size), None, None, config)


def test_a_worker_group_trains_until_it_is_not_to_stay(groups):
    assert [in_group(1, True), in_group(2, False), in_group(1, False)] == ["a record"] * 3
    assert groups.asked == [(0, "starts"), (0, 1), (0, 2), (0, "ends"), (1, "starts"), (1, 1), (1, "ends")]


def test_a_worker_group_of_another_kind_is_ended_and_one_that_failed_is_not_asked_again(groups):
    in_group(1, True)
    groups.kind.fits = False
    with pytest.raises(ValueError, match="a worker failed"):
        in_group(3, True)
    groups.kind.fits = True
    in_group(2, True)
    assert groups.asked == [(0, "starts"), (0, 1), (0, "ends"), (1, "starts"), (1, 3), (2, "starts"), (2, 2)]


@pytest.mark.parametrize(
    ("other", "fits"),
    [
        ({"batch_size": 16, "recipe": "blog", "epochs": 1}, True),
        ({"device": "gpu"}, False),
        ({"num_workers": 2}, False),
        ({"num_nodes": 2}, False),
        ({"cpu_threads": 3}, False),
    ],
)
def test_a_worker_group_trains_what_takes_the_same_workers_while_they_are_there(other, fits):
    like = {"num_workers": 4, "cpu_threads": 1}
    workers = object.__new__(group.WorkerGroup)
    workers._like, workers._ended = make_cell(**like), Future()
    assert workers.can_train(make_cell(**{**like, **other})) == fits
    workers._ended.set_result(None)
    assert not workers.can_train(workers._like)


def test_a_cell_of_a_worker_group_leaves_no_data_on_the_device(images):
    group.inputs.resident(images.train, torch.device("cpu"))
    assert group.inputs.resident.cache_info().currsize
    group._forget()
    assert not group.inputs.resident.cache_info().currsize


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


def test_a_trial_process_notes_the_commit_before_its_first_trial_and_then_says_that_it_is_ready(monkeypatch):
    events = []
    monkeypatch.setattr(trial, "_HOT", trial._HotCells())
    monkeypatch.setattr(trial.environment, "git_commit", lambda: events.append("commit"))
    monkeypatch.setattr(trial.environment, "describe", lambda device: Environment())
    monkeypatch.setattr(trial.tune, "report", lambda told: events.append(next(iter(told))))
    monkeypatch.setattr(
        trial, "_fit", lambda *of: events.append("trained") or Record(measurement=Measurement(status="ok"))
    )
    config = {"trial": Trial(cell=make_cell(), repeat=0, process=0).to_json(), "nodes": [], "group_stays": False}
    for _ in range(2):
        trial.run(config, How(seconds=1.0), [None])
    assert events == ["commit", "process_id", "trained", "outcome", "trained", "outcome"]
