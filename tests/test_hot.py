"""The cells that a process keeps hot, and what it gives back."""

import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from samples import make_cell

from rresnet.data import ImageData, Split
from rresnet.runner import hot


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


def test_what_pytorch_only_caches_of_a_gpus_memory_is_free(monkeypatch):
    cached = [6]
    monkeypatch.setattr(hot.torch.cuda, "empty_cache", cached.clear)
    monkeypatch.setattr(hot.torch.cuda, "mem_get_info", lambda: (8 - sum(cached), 8))
    assert hot.free_memory_share("gpu") == 1.0
