"""Convolutions as matrix products: the same outputs and gradients as PyTorch's own."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rresnet.training import convolution


def pair(*arguments: int, **options: object) -> tuple[nn.Conv2d, nn.Conv2d]:
    """A convolution and the same one as a product, in float64."""
    torch.manual_seed(0)
    conv, product = (nn.Conv2d(*arguments, **options).double() for _ in range(2))
    product.load_state_dict(conv.state_dict())
    convolution.as_products(product)
    return conv, product


def results(module: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradients of a sum that weighs every output."""
    images = images.clone().requires_grad_()
    output = module(images)
    (output * torch.arange(output.numel(), dtype=output.dtype).view_as(output)).sum().backward()
    return [output.detach(), images.grad, *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [(1, 1, 0, 4), (1, 2, 0, 5), (3, 1, 1, 1), (3, 1, 1, 2), (3, 2, 1, 2), (3, 1, 1, 3), (3, 2, 1, 3), (3, 1, 0, 3),
     (5, 1, 2, 5), (5, 2, 2, 4), (5, 3, 4, 2), (2, 2, 0, 2), (3, 1, 1, 4), (3, 2, 1, 8),
     (3, 2, 1, 4), (3, 2, 0, 5), (5, 3, 2, 8), (5, 4, 4, 6)],
)  # fmt: skip
def test_a_product_gives_what_the_convolution_gives(kernel, stride, padding, size, bias, memory_format):
    conv, product = pair(3, 5, kernel, stride, padding, bias=bias)
    images = torch.randn(2, 3, size, size, dtype=torch.float64).contiguous(memory_format=memory_format)
    for expected, found in zip(results(conv, images), results(product, images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-10)


def test_a_map_need_not_be_square():
    conv, product = pair(3, 5, (3, 5), (1, 2), (1, 2), bias=False)
    images = torch.randn(2, 3, 2, 6, dtype=torch.float64)
    for expected, found in zip(results(conv, images), results(product, images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (8, 2), (8, 1)])
def test_in_bfloat16_it_is_as_near_to_the_truth_as_the_convolution_is(size, stride):
    conv, product = (module.float() for module in pair(16, 24, 3, stride, 1, bias=False))
    images = torch.randn(32, 16, size, size).bfloat16().contiguous(memory_format=torch.channels_last)
    truth = results(pair(16, 24, 3, stride, 1, bias=False)[0], images.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        errors = [
            [
                float((found - true).norm() / true.norm())
                for found, true in zip(results(module, images), truth, strict=True)
            ]
            for module in (conv, product)
        ]
    assert all(of_product < 1.5 * of_conv for of_conv, of_product in zip(*errors, strict=True)), errors


@pytest.mark.parametrize(
    "dim", [convolution.Dimension(2, 3, 1, 1), convolution.Dimension(4, 3, 2, 1), convolution.Dimension(2, 5, 3, 4)]
)
def test_what_the_compiler_is_told_of_the_slices_is_what_they_give(dim):
    taps, pixels = torch.randn(5, dim.kernel, dim.kernel, 7), torch.randn(2, dim.size, dim.size, 7)
    whole = convolution.whole_of(taps, dim, dim, torch.bfloat16)
    patches = convolution.patches_of(pixels, dim, dim)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(convolution.whole_of, (taps, dim, dim, torch.bfloat16), test_utils=checks)
    torch.library.opcheck(convolution.taps_of, (whole, dim, dim, torch.float32), test_utils=checks)
    torch.library.opcheck(convolution.patches_of, (pixels, dim, dim), test_utils=checks)
    torch.library.opcheck(convolution.pixels_of, (patches, dim, dim), test_utils=checks)


def test_results_and_gradients_have_the_layout_of_their_neighbours():
    images = torch.randn(2, 4, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    strided, small = nn.Conv2d(4, 6, 1, 2, bias=False), nn.Conv2d(4, 6, 3, 1, 1, bias=False)
    for module in (strided, small):
        convolution.as_products(module)
    strided(images).sum().backward()
    assert images.grad.is_contiguous(memory_format=torch.channels_last)
    pixel = small(torch.randn(2, 4, 1, 1))
    assert pixel.stride() == nn.BatchNorm2d(6)(pixel).stride()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_weights_are_not_copied_for_each_image_where_no_gradient_is_needed(memory_format):
    product = nn.Conv2d(4, 6, 1, 2, bias=False)
    convolution.as_products(product)
    images = torch.randn(8, 4, 4, 4, dtype=torch.bfloat16).contiguous(memory_format=memory_format)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), torch.profiler.profile() as profile:
        product(images)
    names = {event.name for event in profile.events()}
    assert "aten::mm" in names
    assert "aten::bmm" not in names


@pytest.mark.parametrize(("size", "share"), [(1, 1 / 9), (2, 4 / 9), (3, 1.0), (4, 1.0)])
def test_nothing_is_multiplied_by_the_padding(size, share):
    conv, product = pair(8, 8, 3, 1, 1, bias=False)
    counted = []
    for module in (conv, product):
        with FlopCounterMode(display=False) as flops:
            module(torch.randn(2, 8, size, size, dtype=torch.float64))
        counted.append(flops.get_total_flops())
    assert counted[1] == pytest.approx(share * counted[0])


@pytest.mark.parametrize(
    "options", [{"groups": 2}, {"dilation": 2}, {"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}]
)
def test_others_stay_as_they_are(options):
    module = nn.Conv2d(4, 4, 3, **options)
    convolution.as_products(module)
    assert type(module) is nn.Conv2d


def test_a_subclass_stays_as_it_is():
    class Own(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    module = Own(4, 4, 1)
    convolution.as_products(module)
    assert type(module) is Own
