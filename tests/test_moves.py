"""Rows that are moved in C++ are those that PyTorch's operations move."""

import copy

import pytest
import torch
from torch import nn

from rresnet import hardware
from rresnet.training import convolution, moves

pytestmark = pytest.mark.skipif(not hardware.probe().gcc, reason="native kernels are made by GCC")


def results(module, images):
    """Output and gradients, where each output has a weight of its own; and the operators that made them."""
    images = images.clone().requires_grad_()
    half = images.dtype == torch.bfloat16
    with torch.profiler.profile() as profile:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            output = module(images)
        (output.float() * torch.arange(output.numel()).view_as(output).sin()).sum().backward()
    gradients = [parameter.grad for parameter in module.parameters()]
    return [output.detach(), images.grad, *gradients], {event.name for event in profile.events()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [(3, 1, 1, (1, 1)), (3, 1, 1, (2, 2)), (3, 2, 1, (2, 2)), (3, 1, 0, (3, 3)), (5, 3, 4, (2, 2)), (2, 2, 0, (2, 2)),
     ((3, 5), (1, 2), (1, 2), (2, 6)), (3, 1, 1, (4, 4)), (3, 2, 1, (4, 4)), (3, 2, 0, (5, 5)), (5, 3, 2, (8, 8))],
)  # fmt: skip
def test_rows_moved_in_cpp_are_those_that_pytorch_moves(kernel, stride, padding, size, bias, dtype):
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 300, kernel, stride, padding, bias=bias).to(memory_format=torch.channels_last)
    plain = plain.double() if dtype == torch.float64 else plain
    convolution.as_products(plain)
    ours = copy.deepcopy(plain)
    moves.natively(ours)
    images = torch.randn(5, 3, *size).to(dtype).contiguous(memory_format=torch.channels_last)
    (expected, theirs), (found, names) = results(plain, images), results(ours, images)
    rtol, atol = (1e-2, 1e-2) if dtype == torch.bfloat16 else (1e-6, 1e-5)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)
    moved, theirs = ({name for name in of if name.startswith("rresnet::")} for of in (names, theirs))
    if dtype == torch.float64:  # for which there is nothing in C++
        assert moved == theirs
    else:
        assert moved == ({"rresnet::add_rows"} if theirs else set())
