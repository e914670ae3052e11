"""A worker group as the trial process sees it, and what a worker does with what it is asked."""

import itertools
import pickle
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
import torch
from samples import make_cell
from torch import distributed

from rresnet.config import How
from rresnet.runner import group
from rresnet.runner.exchange import Training
from rresnet.tables.measurement import Measurement, Record


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Makes the worker of a trial process that is on the node `home`; the worker is on node a."""
    context = SimpleNamespace(get_node_id=lambda: "a")
    monkeypatch.setattr(group.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(group, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(group, "free_memory_share", lambda device: 0.125)
    monkeypatch.setattr(group, "images_of", lambda ref: "images")
    monkeypatch.setattr(group, "Workbench", lambda **parts: SimpleNamespace(**parts))
    made = []

    def train(bench, how, *, startup_seconds, progress):
        made.append((bench.cell.batch_size, bench.rank, bench.world, id(bench)))
        return Record(measurement=Measurement(status="ok", startup_seconds=startup_seconds))

    monkeypatch.setattr(group, "train", train)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)

    def on(home, device="cpu"):
        return group._Worker(exchange=None, device=device, home=home, how=How(seconds=1.0), data=[None])

    yield SimpleNamespace(on=on, made=made)
    distributed.destroy_process_group()


def asked(batch_size):
    return Training(make_cell(batch_size=batch_size), ("a",))


def test_a_worker_keeps_what_it_has_built_until_it_is_to_forget(worker):
    one = worker.on("a")
    for batch_size in (2, 4, 2):
        record, _ = pickle.loads(one.train(asked(batch_size)))
        assert record.measurement.status == "ok"
    first, other, again = worker.made
    assert first == again
    assert first[:3] == (2, 0, 1)
    assert other[0] == 4
    kept = one._hot.count
    assert one.forget() == b""
    assert (kept, one._hot.count) == (2, 0)


@pytest.mark.parametrize(("home", "device", "share"), [("a", "cpu", 1.0), ("b", "cpu", 0.125), ("a", "gpu", 0.125)])
def test_a_worker_tells_what_memory_is_free_where_the_trial_process_can_not_see_it(home, device, share, worker):
    _, told = pickle.loads(worker.on(home, device).train(asked(2)))
    assert told == share


def test_a_worker_that_a_cell_does_not_take_answers_nothing(worker, monkeypatch):
    one = worker.on("a")
    monkeypatch.setattr(group.layout, "members", lambda nodes, of_workers: [1])
    monkeypatch.setattr(one, "_part", lambda ranks: (None, None))
    assert one.train(asked(2)) is None
    assert worker.made == []


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
