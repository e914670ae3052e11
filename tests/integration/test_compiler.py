import pytest
from benches import bench, image_data, losses
from torch._dynamo.utils import counters

from rresnet.training.train import visit

BF16 = {"precision": "bf16", "fused_optimizer": True}


def test_a_compiled_step_learns_what_an_eager_one_learns(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    layout = {"channels_last": True, "pointwise": "linear", "small_maps": "linear"}
    axes = {"model": "samples:few_layers", "input": "resident", **layout}
    assert losses(execution="compile", **axes) == pytest.approx(losses(**axes), rel=1e-4)


@pytest.mark.parametrize("ours", [{}, {"channels_last": True, "pointwise": "linear", "small_maps": "linear", **BF16}])
def test_what_was_compiled_is_found_in_the_cache(tmp_path, monkeypatch, ours):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    data, axes = image_data(20), {"model": "samples:few_layers", "input": "resident", "batch_size": 8, **ours}
    eager = bench(data, **axes)
    expected = eager.train_step(*next(eager.batches)).item()
    tolerance = 0.05 if "precision" in ours else 1e-4
    for cache in ("cold", "warm"):
        counters.clear()
        found = bench(data, execution="compile", **axes)
        assert found.train_step(*next(found.batches)).item() == pytest.approx(expected, rel=tolerance)
        first = visit(found, seconds=0.01, startup_seconds=1000.0, progress=lambda rate: None).measurement
        assert first.compile_cache == cache
        # Traced once for good, our own layers as well: found the second time, and neither left out of the cache.
        assert (counters["aot_autograd"]["autograd_cache_hit"] > 0) == (cache == "warm")
        assert counters["aot_autograd"]["autograd_cache_bypass"] == 0
        assert first.compile_seconds > 0
        assert first.startup_seconds == 1000.0 - first.compile_seconds
        second = visit(found, seconds=0.01, startup_seconds=0.0, progress=lambda rate: None).measurement
        assert (second.compile_seconds, second.compile_cache) == (None, None)
