"""What only a GPU can tell: steps that it captures, its clock, its counters, its memory. It must be ours alone."""

import gc
import itertools
import json
import time
import zlib

import numpy as np
import pytest
import torch
from benches import bench, losses, split

from rresnet import hardware
from rresnet.data import ImageData
from rresnet.quality.monitor import Monitor
from rresnet.training import limits, model, step
from rresnet.training.memory import is_out_of_memory
from rresnet.training.train import train_epochs, visit

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]

TUNED = {
    "device": "gpu",
    "recipe": "tuned",
    "input": "resident",
    "channels_last": True,
    "fused_optimizer": True,
    "cudnn_benchmark": True,
}
MODES = {
    "eager": {"execution": "eager"},
    "graph": {"execution": "graph"},
    "fused": {"execution": "graph", "kernels": "fused"},
    "compiled": {"execution": "compile"},
}


def needs_its_precision(precision):
    if precision in ("bf16", "tf32") and not hardware.probe().gpu_bf16:
        pytest.skip(f"the {hardware.probe().gpu_name} has no {precision}")


def needs_its_compiler(mode):
    found = {"fused": hardware.probe().gpu_triton, "compiled": hardware.probe().compiler}
    if not found.get(mode, True):
        pytest.skip("there is no C++ compiler, or no Triton")


@pytest.fixture
def half():
    """The precision of `tuned` on this GPU."""
    return "bf16" if hardware.probe().gpu_bf16 else "fp32"


def unseen(rate):
    """A progress nobody looks at."""


def test_a_gpu_learns_what_a_processor_learns():
    assert losses(device="gpu") == pytest.approx(losses(), rel=1e-6)


@pytest.mark.parametrize("path", ["resident", "dataloader"])
@pytest.mark.parametrize("mode", MODES)
def test_every_execution_learns_what_the_blogs_step_learns_in_short_batches_too(mode, path):
    needs_its_compiler(mode)
    sized = {"model": "samples:few_layers", "batch_size": 16}  # of 40 images: 16, 16 and 8
    expected = losses(device="gpu", **sized)
    found = losses(**{**TUNED, **MODES[mode], **sized, "input": path})
    assert found == pytest.approx(expected, rel=1e-6)
    assert expected[2] != pytest.approx(expected[0], rel=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_making_a_step_ready_trains_nothing_and_draws_nothing(mode):
    needs_its_compiler(mode)
    fresh = bench(**TUNED)
    weights = {name: tensor.clone() for name, tensor in fresh.network.state_dict().items()}
    made = bench(**TUNED, **MODES[mode])
    assert all(torch.equal(tensor, weights[name]) for name, tensor in made.network.state_dict().items())
    assert not any(tensor.any() for tensor in step.optimizer_tensors(made.optimizer))
    random, on_gpu = torch.get_rng_state(), torch.cuda.get_rng_state()
    step.build(made.cell, made.network, made.optimizer, made.inputs.load, made.inputs.examples)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(torch.cuda.get_rng_state(), on_gpu)


@pytest.mark.parametrize("mode", ["graph", "fused"])
def test_captured_cells_take_turns_and_know_nothing_of_each_other(mode):
    """Each graph goes on with memory of its own, also once what is only cached has been given back between visits.

    Nor does one end what another uses when it is dropped.
    """
    needs_its_compiler(mode)
    axes = {**TUNED, **MODES[mode], "model": "samples:few_layers"}
    lone = bench(**axes, batch_size=16)
    expected = [lone.train_step(*raw).item() for raw in itertools.islice(lone.batches, 9)]
    several = [bench(**axes, batch_size=size) for size in (8, 16, 10)]
    found = []
    for turn in range(9):
        if turn == 5:
            one = several.pop()
            del one
            gc.collect()
        for one in several:
            loss = one.train_step(*next(one.batches))
            found += [loss.item()] if one is several[1] else []
            torch.cuda.empty_cache()
    assert found == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("mode", ["graph", "fused", "compiled"])
def test_a_captured_step_of_torchvisions_model_learns_what_its_eager_step_learns(mode, half):
    """Adam's first update is the learning rate in the direction of the gradient, for each weight: which way they went.

    In bfloat16 small gradients come out either way; a layer that learnt nothing would have no direction at all.
    """
    needs_its_compiler(mode)
    axes = {**TUNED, "precision": half, "batch_size": 16}
    ways, losses = [], []
    for how in ("eager", mode):
        one = bench(**axes, **MODES[how])
        before = {name: parameter.detach().clone() for name, parameter in one.network.named_parameters()}
        losses.append(one.train_step(*next(one.inputs.epoch())).item())
        ways.append({name: (p.detach() - before[name]).sign() for name, p in one.network.named_parameters()})
        assert one.network.state_dict()["bn1.num_batches_tracked"] == 1
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    alike = {name: (way == ways[1][name]).float().mean().item() for name, way in ways[0].items()}
    assert min(alike.values()) > 0.75, alike


@pytest.mark.parametrize("name", ["samples:dropping_most", "vgg11"])
@pytest.mark.parametrize("mode", ["graph", "fused"])
def test_a_captured_step_draws_anew_in_each_replay(monkeypatch, name, mode, half):
    needs_its_compiler(mode)
    monkeypatch.setattr(model, "LEARNING_RATE", 0.0)
    found = bench(**TUNED, **MODES[mode], model=name, precision=half)
    (batch,) = found.inputs.examples()
    assert len({found.train_step(*batch).item() for _ in range(4)}) == 4


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_every_precision_runs_as_what_it_is_called(precision):
    needs_its_precision(precision)
    found = bench(**TUNED, precision=precision)
    told = visit(found, seconds=0.2, startup_seconds=0.0, progress=unseen).measurement
    plain = "tf32" if precision == "tf32" else "ieee"
    dtype = {"bf16": "bfloat16", "fp16": "float16"}.get(precision)
    assert (told.conv_precision, told.matmul_precision, told.autocast_dtype) == (plain, plain, dtype)
    assert told.final_loss < told.first_loss


@pytest.mark.parametrize("mode", MODES)
def test_a_visit_tells_what_the_gpu_did(mode, half):
    needs_its_compiler(mode)
    found = bench(**TUNED, precision=half, **MODES[mode], batch_size=20)
    record = visit(found, seconds=2.0, startup_seconds=0.0, progress=unseen)
    told = record.measurement
    assert told.measured_images == sum(w.images for w in record.windows if w.kind == "measured")
    assert told.images_per_second == pytest.approx(told.measured_images / told.measured_seconds)
    assert told.measured_seconds == sum(w.seconds for w in record.windows if w.kind == "measured") >= 2.0
    starts = [window.started_seconds for window in record.windows]
    ends = [window.started_seconds + window.seconds for window in record.windows]
    assert all(end <= start + 1e-3 for end, start in zip(ends, starts[1:], strict=False))
    weights = sum(parameter.nbytes for parameter in found.network.parameters())
    # Weights, both moments, and gradients, or what a captured step has of them at a time; and 20 small images.
    assert (3.5 if mode == "fused" else 4) * weights < told.peak_memory_bytes < 2**31
    assert 0 < told.percent_of_limit < 100
    assert told.canary_matrix_seconds > 0
    assert told.energy_joules is None or 10 < told.energy_joules / told.measured_seconds < 2000
    assert told.bottleneck is not None
    assert 0 < told.launch_share <= 1
    assert (told.optimizer_seconds is None) == (mode != "eager")
    assert (told.compile_seconds is None) == (mode == "eager")
    assert "gpu_shared" not in told.quality_flags
    assert told.final_loss < told.first_loss


@pytest.mark.parametrize("mode", MODES)
def test_whole_epochs_train_on_every_image_from_the_seed(mode):
    needs_its_compiler(mode)
    axes = {**TUNED, **MODES[mode], "model": "samples:few_layers", "batch_size": 16}
    fresh, found = bench(**axes), bench(**axes)
    expected = [fresh.train_step(*raw).item() for raw in fresh.inputs.epoch()]
    record = train_epochs(found, epochs=2, startup_seconds=0.0, progress=unseen, save_model=True)
    assert [epoch.images for epoch in record.epochs] == [40, 40]
    assert sum(w.seconds for w in record.windows if w.epoch == 1) == record.epochs[1].seconds
    assert record.epochs[0].train_loss == pytest.approx(sum(expected) / 3, rel=1e-3)
    assert len(record.files[".pt"]) > sum(parameter.nbytes for parameter in found.network.parameters())


@pytest.mark.parametrize("mode", ["eager", "graph", "fused"])
def test_a_batch_that_does_not_fit_is_told_as_such_and_leaves_the_gpu_usable(mode):
    needs_its_compiler(mode)
    gc.collect()
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated()
    large = split(4 * 10**5, size=64)
    data = ImageData(train=large, test=large, classes=tuple("abcd"), fingerprint="f")
    with pytest.raises(RuntimeError) as caught:
        bench(data, **TUNED, model="resnet50", image_size=64, batch_size=len(large.labels), **MODES[mode])
    assert is_out_of_memory(caught.value)
    del caught
    gc.collect()
    torch.cuda.empty_cache()
    images = large.images.nbytes + large.labels.nbytes  # which the process keeps
    assert torch.cuda.memory_allocated() - held < images + 2**28
    again = bench(**TUNED, **MODES[mode])
    assert np.isfinite(visit(again, seconds=0.05, startup_seconds=0.0, progress=unseen).measurement.final_loss)


def test_a_trace_shows_what_the_gpu_computed():
    trace = json.loads(zlib.decompress(bench(**TUNED, execution="graph").trace(2), wbits=31))
    assert sum(event.get("cat") == "kernel" for event in trace["traceEvents"]) > 100


def test_nvml_and_pytorch_tell_of_the_same_gpu():
    told, theirs = hardware.probe(), torch.cuda.get_device_properties(0)
    assert (told.gpu_count, told.gpu_name) == (torch.cuda.device_count(), theirs.name)
    assert told.gpu_capability == (theirs.major, theirs.minor)


def test_the_counters_of_a_gpu_at_work():
    call = limits._matrix_product(torch.device("cuda"), torch.float16, 4096)
    monitor = Monitor(str(torch.cuda.get_device_properties(0).uuid))
    for _ in range(2):
        with monitor.watching():
            until = time.perf_counter() + 0.5
            while time.perf_counter() < until:
                call()
                torch.cuda.synchronize()
    usage = monitor.usage()
    assert usage.gpu_foreign_processes == 0
    assert usage.gpu_utilization_percent > 50
    assert usage.energy_joules is None or 10 < usage.energy_joules / usage.seconds < 2000
    assert isinstance(usage.gpu_throttled, bool)
