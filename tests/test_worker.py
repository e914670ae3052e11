"""What a worker of a group does with what it is asked, alone in its group."""

import gc
import pickle
import weakref
from types import SimpleNamespace

import pytest
import torch
from samples import make_cell
from torch import distributed

from rresnet.config import How
from rresnet.runner import group, hot
from rresnet.runner.exchange import Training
from rresnet.tables.measurement import Measurement
from rresnet.training.train import Record


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Makes the worker of a trial process that is on the node `home`; the worker is on node a."""
    context = SimpleNamespace(get_node_id=lambda: "a")
    monkeypatch.setattr(group.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(group, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(group, "free_memory_share", lambda device: 0.125)
    monkeypatch.setattr(hot.HotCells, "data", lambda self, ref: "images")
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
    monkeypatch.setattr(one, "_part", lambda ranks: None)
    assert one.train(asked(2)) is None
    assert worker.made == []


@pytest.mark.parametrize("epochs", [1, None])
def test_after_whole_epochs_what_refers_to_itself_is_freed_at_once(epochs):
    gc.collect()
    gc.disable()
    try:
        one = torch.nn.Identity()
        one.__dict__["itself"], left = one, weakref.ref(one)
        del one
        hot.give_back(make_cell(epochs=epochs))
        assert (left() is None) == bool(epochs)
    finally:
        gc.enable()


def test_the_free_share_of_a_cpus_memory_is_the_machines(monkeypatch):
    memory = SimpleNamespace(available=3 * 2**30, total=8 * 2**30)
    monkeypatch.setattr(hot.psutil, "virtual_memory", lambda: memory)
    assert hot.free_memory_share("cpu") == 0.375
