from dataclasses import replace

import pytest
from benches import image_data, replaying, small_bench
from torch._dynamo.utils import counters

from rresnet.training import step
from rresnet.training.train import visit

OURS = {"channels_last": True, "pointwise": "linear", "small_maps": "linear"}


def test_a_compiled_step_that_is_captured_learns_what_an_eager_one_learns(tmp_path, monkeypatch):
    """With the weights of all layers cast at once, before what is compiled; nothing warns, or pytest would raise it."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    axes = {"input": "resident", "batch_size": 8, "precision": "bf16"}
    eager, found = (small_bench(image_data(20), **axes) for _ in range(2))  # batches of 8, 8 and 4
    cell = replace(found.cell, execution="compile", model="few_layers")  # as one of torchvision's
    take = step.Prepared(
        cell, found.network, found.optimizer, found.inputs.load, found.inputs.examples(), capture=replaying
    )
    found.start_over()
    ours, theirs = (
        [one(*raw).item() for raw in b.inputs.epoch()] for one, b in ((take, found), (eager.train_step, eager))
    )
    assert ours == pytest.approx(theirs, rel=0.05)
    assert found.network.state_dict()["1.num_batches_tracked"] == 3
    assert take.held_bytes == 123


def first_losses(one):
    return [one.train_step(*next(one.batches)).item() for _ in range(3)]


# Of 16 images no batch is short, of 20 the last one is, and has a step of its own.
@pytest.mark.parametrize(("count", "more"), [(16, {}), (20, {"precision": "bf16", "fused_optimizer": True})])
def test_a_compiled_step_learns_what_an_eager_one_learns_and_is_found_in_the_cache(tmp_path, monkeypatch, count, more):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    data, axes = image_data(count), {"input": "resident", "batch_size": 8, **OURS, **more}
    expected = first_losses(small_bench(data, **axes))
    tolerance = 0.05 if more else 1e-4
    for cache in ("cold", "warm"):
        counters.clear()
        found = small_bench(data, execution="compile", **axes)
        assert first_losses(found) == pytest.approx(expected, rel=tolerance)
        first = visit(found, seconds=0.01, startup_seconds=1000.0, progress=lambda rate: None).measurement
        assert first.compile_cache == cache
        # Traced once for good, our own layers as well: found the second time, and neither left out of the cache.
        assert (counters["aot_autograd"]["autograd_cache_hit"] > 0) == (cache == "warm")
        assert counters["aot_autograd"]["autograd_cache_bypass"] == 0
        assert first.compile_seconds > 0
        assert first.startup_seconds == 1000.0 - first.compile_seconds
        second = visit(found, seconds=0.01, startup_seconds=0.0, progress=lambda rate: None).measurement
        assert (second.compile_seconds, second.compile_cache) == (None, None)
