"""Batch norm with the addition and the ReLU after it: on a processor in C++, on a GPU in Triton, here interpreted."""

import copy
import importlib.util
import io
import os
import pathlib
import subprocess
import sys
from unittest import mock

import pytest
import torch
import torchvision
from benches import bench
from samples import make_cell
from small_nets import DEVICE, ON_GPU, as_kind, far, images
from torch import nn

from rresnet import hardware
from rresnet.training import compilers, model, native
from rresnet.training.norm import BatchNormReLU

THREADS = 3  # which share the pixels unevenly


@pytest.fixture(params=["native", "gpu_norm"])
def kernels(request):
    if request.param == "native":
        if ON_GPU or not hardware.probe().gcc:
            pytest.skip("native kernels are a processor's, and made by GCC")
        before = torch.get_num_threads()
        torch.set_num_threads(THREADS)
        yield native
        torch.set_num_threads(before)
    else:
        if importlib.util.find_spec("triton") is None:
            pytest.skip("there is no Triton")
        from rresnet.training import gpu_norm

        yield gpu_norm


def batch_norm(kernels, channels, **more):
    """A batch norm in float64, and as ours in float32."""
    torch.manual_seed(1)
    expected = nn.BatchNorm2d(channels).to(DEVICE)
    nn.init.uniform_(expected.weight, 0.5, 1.5)
    nn.init.uniform_(expected.bias, -0.5, 0.5)
    return copy.deepcopy(expected).double(), as_kind(BatchNormReLU, expected, kernels=kernels, **more)


SHAPES = [(5, 24, 1, 2), (3, 40, 8, 8), (2, 16, 12, 20), (9, 8, 12, 20)]  # a program, or one or several parts


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_norm_adds_and_rectifies_and_so_do_its_gradients(kernels, shape, added, relu, dtype):
    expected, found = batch_norm(kernels, shape[1], relu=relu)
    x = (images(*shape) * 2 + 50 * (dtype == torch.float32)).to(dtype).requires_grad_()
    beside = images(*shape, seed=1, dtype=dtype).requires_grad_() if added else None
    gradient = images(*shape, seed=2, dtype=dtype)
    exact = [None if t is None else t.detach().double().requires_grad_() for t in (x, beside)]
    for _ in range(2):  # the second averages over both
        y = expected(exact[0]) + (exact[1] if added else 0)
        y = y.relu() if relu else y
        result = found(x, beside)
    y.backward(gradient.double())
    result.backward(gradient)
    pairs = [(result, y), (x.grad, exact[0].grad), (found.weight.grad, expected.weight.grad)]
    pairs += [(found.bias.grad, expected.bias.grad), (found.running_mean, expected.running_mean)]
    pairs += [(found.running_var, expected.running_var), *([(beside.grad, exact[1].grad)] if added else [])]
    assert max(far(*pair) for pair in pairs) < (1e-5 if dtype == torch.float32 else 1e-2)
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_result_that_two_use_has_the_gradient_of_both(kernels, shape, relu):
    expected, found = batch_norm(kernels, shape[1], relu=relu, twice=True)
    x, beside, one, other = (images(*shape, seed=seed) for seed in range(4))
    leaves = [tensor.clone().requires_grad_() for tensor in (x, beside)]
    exact = [tensor.double().requires_grad_() for tensor in (x, beside)]
    y = expected(exact[0]) + exact[1]
    y = y.relu() if relu else y
    (y * one.double() + y * other.double()).sum().backward()
    first, second = found(*leaves)
    ((first * one).sum() + (second * other).sum()).backward()
    assert max(far(leaf.grad, of.grad) for leaf, of in zip(leaves, exact, strict=True)) < 1e-5


@pytest.mark.parametrize("where", [0, -1])
def test_what_is_not_a_number_stays_so(kernels, where):
    _, found = batch_norm(kernels, 4, relu=True)
    for size in (2, 24):
        x = images(4, 4, size, size)
        x[where, 1, where, where] = float("nan")
        assert found(x)[:, 1].isnan().all()
        assert not found(x)[:, 0].isnan().any()
        averages = torch.stack((found.running_mean, found.running_var))
        assert averages.isnan().tolist() == [[False, True, False, False]] * 2
        found.reset_running_stats()


@pytest.mark.parametrize("where", [(0, 0, 0), (2, 127, 127), (slice(None), 0, 0)])
def test_pixels_far_from_all_others_cost_no_digits(kernels, where):
    expected, found = batch_norm(kernels, 8, relu=False)
    x = images(3, 8, 128, 128)
    item, row, column = where
    x[item, :, row, column] = 1e5
    y = expected(x.double())
    assert far(found(x), y) < 1e-5
    assert far(found.running_var, expected.running_var) < 1e-5


def test_what_the_kernels_do_not_take_pytorch_computes(kernels):
    _, found = batch_norm(kernels, 4, relu=True, twice=True)
    x, row = images(3, 4, 2, 2), images(1, 4, 1, 1)
    first, second = found(x, row)
    assert torch.equal(first, (nn.functional.batch_norm(x, None, None, found.weight, found.bias, True) + row).relu())
    assert second is first
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        found(row)
    found.bfloat16()
    found.kernels = mock.Mock(types=kernels.types)  # they would read a float where half of one is
    found(x.bfloat16())
    assert not found.kernels.norm.called


def test_what_is_evaluated_is_pytorchs_and_counts_no_batch(kernels):
    expected, found = batch_norm(kernels, 4, relu=True)
    x, beside = images(3, 4, 2, 2) * 3, images(3, 4, 2, 2, seed=1)
    for _ in range(2):
        expected(x.double())
        found(x, beside)
    assert found.num_batches_tracked == expected.num_batches_tracked == 2
    expected.eval()
    found.eval()
    torch.testing.assert_close(found(x, beside), (expected(x.double()) + beside).relu().float())
    assert found.num_batches_tracked == 2


needs_gcc = pytest.mark.skipif(ON_GPU or not hardware.probe().gcc, reason="native kernels are a processor's, by GCC")


@needs_gcc
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121"])
def test_a_model_with_fused_norms_is_saved_and_evaluated_as_it_was(name):
    axes = {"model": name, "channels_last": True, "fused_optimizer": True}
    plain, found = (
        model.build(make_cell(**axes, kernels=kernels), 4, torch.device("cpu"))[0] for kernels in ("pytorch", "fused")
    )
    exact = copy.deepcopy(plain).double()
    assert any(isinstance(module, BatchNormReLU) for module in found.modules())
    assert list(found.state_dict()) == list(plain.state_dict())
    inputs, learnt = images(8, 3, 64, 64), []
    for network in (exact, plain, found):
        torch.manual_seed(0)  # of what is dropped
        network.train()(inputs.to(next(network.parameters()).dtype)).square().sum().backward()
        gradients = torch.cat([parameter.grad.double().flatten() for parameter in network.parameters()])
        buffers = torch.cat([buffer.double().flatten() for buffer in network.buffers()])
        learnt.append((gradients, buffers))
    (theirs, ours), of_buffers = ([far(of[kind], learnt[0][kind]) for of in learnt[1:]] for kind in (0, 1))
    assert ours < max(2 * theirs, 1e-4)
    assert max(of_buffers) < 1e-5
    found.load_state_dict(plain.state_dict())
    torch.testing.assert_close(found.eval()(inputs), plain.eval()(inputs), rtol=1e-4, atol=1e-5)


@needs_gcc
@pytest.mark.parametrize("name", ["maxvit_t", "mnasnet0_5"])  # with buffers that are reshaped; of a second version
def test_what_is_saved_is_torchvisions(name):
    found = bench(model=name, channels_last=True, fused_optimizer=True, kernels="fused", image_size=224)
    torchvision.models.get_model(name, num_classes=4).load_state_dict(torch.load(io.BytesIO(found.state_dict_bytes())))


@needs_gcc
def test_a_trace_tells_of_fused_norms():
    network, _ = model.build(make_cell(channels_last=True, fused_optimizer=True, kernels="fused"), 4, "cpu")
    with torch.profiler.profile() as profile:
        network(images(4, 3, 32, 32)).sum().backward()
    counts = {event.key: event.count for event in profile.key_averages()}
    assert (counts["rresnet::norm"], counts["rresnet::norm_backward"]) == (20, 20)
    assert "aten::native_batch_norm" not in counts


@needs_gcc
def test_native_kernels_run_on_pytorchs_threads():
    """They are made without an OpenMP of their own, whose threads would be others."""
    code = "import ctypes, torch; from rresnet.training import native; native.library(); "
    code += "print(sum('libgomp' in line and ' r-xp ' in line for line in open('/proc/self/maps')))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "1"


@needs_gcc
def test_what_was_compiled_is_kept_for_the_next_process(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "two.cpp"
    source.write_text('extern "C" int two() { return 2; }')
    assert compilers.native(source).two() == 2
    (made,) = tmp_path.glob("rresnet/native/*")
    assert made.suffix == ".so"
    with monkeypatch.context() as nothing_runs:
        nothing_runs.setattr(subprocess, "run", None)
        assert compilers.native(source).two() == 2
    source.write_text('extern "C" int two() { return 3; }')
    assert compilers.native(source).two() == 3
    monkeypatch.setattr(hardware, "processor", lambda: ("another", ("sse",)))  # of machines that share a home folder
    compilers.native(source)
    assert len(list(tmp_path.glob("rresnet/native/*.so"))) == 3


@needs_gcc
def test_what_was_kept_and_is_damaged_is_compiled_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "two.cpp"
    source.write_text('extern "C" int two() { return 2; }')
    compilers.native(source)
    (made,) = tmp_path.glob("rresnet/native/*")
    whole = made.stat().st_size
    made.unlink()  # the file that is loaded stays whole
    made.write_bytes(b"")
    assert compilers.native(source).two() == 2
    assert made.stat().st_size == whole


@needs_gcc
def test_without_a_cache_each_process_compiles_for_itself(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way of a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    source = tmp_path / "two.cpp"
    source.write_text('extern "C" int two() { return 2; }')
    assert compilers.native(source).two() == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "statvfs", lambda path: mock.Mock(f_flag=os.ST_NOEXEC))  # nothing that lies there may run
    assert compilers.native(source).two() == 2
    assert not list(tmp_path.glob("rresnet/native/*"))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(pathlib.Path, "home", mock.Mock(side_effect=RuntimeError("no home")))
    assert compilers.native(source).two() == 2


@needs_gcc
def test_kernels_that_can_not_be_compiled_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "wrong.cpp"
    source.write_text("int wrong() { return nothing; }")
    with pytest.raises(RuntimeError, match=r"(?s)can't be made here .*nothing.*not declared.*use --kernels pytorch"):
        compilers.native(source)
    source.write_text("int missing(); int wrong() { return missing(); }")
    with pytest.raises(RuntimeError, match=r"undefined symbol.*: use --kernels pytorch"):
        compilers.native(source)
    source.write_text("int fine() { return 1; }")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match=r"No such file or directory: 'g\+\+'.*: use --kernels pytorch"):
        compilers.native(source)
    assert not list(tmp_path.glob("rresnet/native/rresnet-of-*"))  # of no try anything is left
