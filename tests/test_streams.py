"""The streams of a captured step keep their uses of memory apart."""

import collections

import pytest
import torch
from small_nets import laid_out, small_resnet
from torch import nn

if torch.cuda.is_available():
    pytest.skip("the streams are real there", allow_module_level=True)
pytest.importorskip("triton", reason="Triton comes with PyTorch's CUDA")

from streams import WRITTEN, Stream, Watch

from rresnet.training import adam, gpu_norm, kernels, pool, side
from rresnet.training.captured import FusedLayers


@pytest.fixture
def watch(monkeypatch):
    found = Watch()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: found.streams[-1])
    monkeypatch.setattr(torch.cuda, "stream", found.on)
    for module in (gpu_norm, pool, adam):
        monkeypatch.setattr(module, "launch", found.launch)
    return found


def train(watch, dtype=torch.bfloat16):
    """Two steps each of a whole and of a short batch, as `step.capture` warms up; then what they did is undone."""
    torch.manual_seed(0)
    model = laid_out(small_resnet())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    layers = FusedLayers(model, dtype, optimizer)
    main, capturing = watch.streams[0], Stream()
    with watch:
        capturing.wait_stream(main)
        with watch.on(capturing):
            for count in (8, 8, 5, 5):
                images = torch.randn(count, 3, 24, 24).contiguous(memory_format=torch.channels_last)
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is not None):
                    scores = layers.scores(layers.begin(), images)
                    loss = nn.functional.cross_entropy(scores, torch.arange(count) % 4)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimizer.step()
                layers.finish()
        main.wait_stream(capturing)
        with torch.no_grad():
            for state in optimizer.state.values():
                torch._foreach_zero_(list(state.values()))
            torch._foreach_zero_(list(model.parameters()))
    return watch.hazards


@pytest.mark.parametrize("read_bytes", [2**28, 10**4])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_no_memory_is_used_while_another_stream_uses_it(monkeypatch, watch, dtype, read_bytes):
    monkeypatch.setattr(side, "READ_BYTES", read_bytes)
    assert train(watch, dtype) == []
    assert watch.operations > 500


def test_what_is_read_on_the_side_must_be_kept(monkeypatch, watch):
    monkeypatch.setattr(side, "deque", lambda: collections.deque(maxlen=0))
    assert any("given away" in hazard for hazard in train(watch))


def test_the_streams_must_be_joined(monkeypatch, watch):
    monkeypatch.setattr(side.SideStreams, "join", lambda self: None)
    assert any("adam" in hazard for hazard in train(watch))


def test_what_is_cast_must_be_waited_for(monkeypatch, watch):
    monkeypatch.setattr(side.SideStreams, "ready", lambda self, place: None)
    assert any("copy" in hazard and "still writing" in hazard for hazard in train(watch))


def test_it_is_known_what_each_kernel_writes():
    found = {name: value for name, value in vars(kernels).items() if hasattr(value, "arg_names")}
    own = {name: value for name, value in found.items() if not name.startswith("_")}
    assert own.keys() == WRITTEN.keys()
    assert all(WRITTEN[name] <= set(kernel.arg_names) for name, kernel in own.items())
