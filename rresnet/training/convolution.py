"""Convolutions computed as the matrix products that they are: the same functions of the same parameters.

On CPUs oneDNN's backward pass of a convolution takes longer than that of the product, over maps of few pixels up to
twenty times as long; on images of 32 x 32, ResNet-50 ends in such maps. On a GPU 1x1 convolutions gain a little, and
the others nothing (`docs/performance.md`).
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import linear

Patches = Callable[[torch.Tensor, Sequence[int], Sequence[int]], torch.Tensor]  # like `patches_of`


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution, as a product over pixels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W] to [N, D, H / stride, W / stride]; without a copy where they are channels-last."""
        if x.dim() != 4:
            return super().forward(x)  # a single image
        pixels = self.seen(x.permute(0, 2, 3, 1))  # after permuting, so that their gradient is channels-last, too
        # Flattened here: `linear` would multiply each image by a copy of the weights of its own where the pixels have
        # gaps and no gradient is needed.
        result = self.product(pixels.flatten(0, 2))
        return _images(result.view(*pixels.shape[:3], -1))

    def seen(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [N, H, W, C] to those that the stride does not pass over."""
        return pixels if self.stride == (1, 1) else pixels[:, :: self.stride[0], :: self.stride[1]]

    def product(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [M, C] to [M, D]."""
        return linear(pixels, self.weight.flatten(1), self.bias)


class SmallMapConv2d(nn.Conv2d):
    """A convolution that is computed as one product if its maps are small, as far as that is faster.

    The number of taps of the kernel decides:

    - A map of at most as many pixels is multiplied whole: each output pixel sums each input pixel times the tap that
      meets it. That is no more products than the convolution has, and none with the padding.
    - If at most half as many pixels come out of a larger map, the patches under the kernel are multiplied.
    - If at most twice as many come out, in bfloat16 and without a bias, only the gradient of the weights is a product.
    - Any other map is convolved.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W] to [N, D, H', W'], as `nn.Conv2d`; without a copy where they are channels-last."""
        if x.dim() != 4:
            return super().forward(x)  # a single image
        rows, columns = (
            Dimension(x.shape[2 + i], self.kernel_size[i], self.stride[i], int(self.padding[i])) for i in range(2)
        )
        if min(rows.outputs, columns.outputs) < 1:
            return super().forward(x)  # raises: the kernel is larger than the map
        dims = tuple(rows), tuple(columns)  # plain tuples: the compiler's cache finds no graph that makes others
        outputs, taps = rows.outputs * columns.outputs, rows.kernel * columns.kernel
        pixels, weight = x.permute(0, 2, 3, 1), self.weight.permute(0, 2, 3, 1)
        result: torch.Tensor
        if rows.size * columns.size <= taps:
            whole = self.whole(weight, *dims, x.dtype)
            bias = None if self.bias is None else self.bias.repeat(outputs)
            result = linear(pixels.flatten(1), whole, bias).view(len(x), rows.outputs, columns.outputs, -1)
        elif 2 * outputs <= taps:
            patches = self.patches(pixels, *dims)
            result = linear(patches.flatten(3), weight.flatten(1), self.bias)
        elif outputs <= 2 * taps and x.dtype == torch.bfloat16 and self.bias is None:
            result = Convolved.apply(pixels, weight.to(x.dtype), *dims, self.patches)
        else:
            return super().forward(x)
        return _images(result)

    def whole(
        self, taps: torch.Tensor, rows: Sequence[int], columns: Sequence[int], dtype: torch.dtype
    ) -> torch.Tensor:
        """What `whole_of` gives."""
        result: torch.Tensor = whole_of(taps, rows, columns, dtype)
        return result

    def patches(self, pixels: torch.Tensor, rows: Sequence[int], columns: Sequence[int]) -> torch.Tensor:
        """What `patches_of` gives."""
        result: torch.Tensor = patches_of(pixels, rows, columns)
        return result


def _images(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels [N, H, W, C] as channels-last images [N, C, H, W].

    PyTorch's batch norm returns images of one pixel with strides of one in both spatial dimensions, and its backward
    pass takes far longer if its input has other strides. So they have these strides from the start.
    """
    images, high, wide, channels = pixels.shape
    return pixels.reshape(images, channels, 1, 1) if high == wide == 1 else pixels.permute(0, 3, 1, 2)


class Dimension(NamedTuple):
    """A spatial dimension of a convolution: which of its pixels meet which taps of the kernel."""

    size: int  # pixels
    kernel: int  # taps
    stride: int
    padding: int

    @property
    def outputs(self) -> int:
        """The number of pixels that come out."""
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    def of_outputs(self) -> Iterator[tuple[slice, slice]]:
        """For each output the taps that meet a pixel, and those pixels."""
        for output in range(self.outputs):
            first = output * self.stride - self.padding  # the pixel under the first tap
            start, stop = max(0, first), max(0, min(self.size, first + self.kernel))
            yield (slice(start - first, stop - first), slice(start, stop)) if start < stop else (slice(0), slice(0))

    def of_taps(self) -> Iterator[tuple[slice, slice]]:
        """For each tap the outputs for which it meets a pixel, and those pixels."""
        for tap in range(self.kernel):
            first = tap - self.padding  # the pixel that it meets for the first output
            start = max(0, -(first // self.stride))
            stop = min(self.outputs, (self.size - 1 - first) // self.stride + 1)
            pixels = slice(first + start * self.stride, first + stop * self.stride, self.stride)
            yield (slice(start, stop), pixels) if start < stop else (slice(0), slice(0))


# The functions that move slices write in place, since the gradient of each slice in PyTorch fills a tensor of zeros.
# And they are opaque to the compiler, which would make one huge expression of all slices.


def _operator(function: Callable[..., torch.Tensor]) -> Any:
    """Make the function one PyTorch operator; run on tensors without data, it gives the compiler its shapes itself."""
    operator = torch.library.custom_op(f"rresnet::{function.__name__}", function, mutates_args=())
    operator.register_fake(function)
    return operator


def _note(ctx: Any, inputs: Sequence[Any], output: torch.Tensor) -> None:
    """Keep what the gradient of an operator needs: both dimensions, and the type of its input."""
    ctx.dims, ctx.dtype = inputs[1:3], inputs[0].dtype


@_operator
def whole_of(taps: torch.Tensor, rows: Sequence[int], columns: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """The matrix [H' W' D, H W C] by which a convolution multiplies a whole map, from taps [D, KH, KW, C]."""
    down, across = Dimension(*rows), Dimension(*columns)
    shape = down.outputs * across.outputs, len(taps), down.size, across.size, taps.shape[3]
    whole = taps.new_zeros(shape, dtype=dtype)
    for output, ((tap, pixel), (beside, next_to)) in enumerate(product(down.of_outputs(), across.of_outputs())):
        whole[output, :, pixel, next_to] = taps[:, tap, beside]
    return whole.view(shape[0] * shape[1], -1)


@_operator
def taps_of(whole: torch.Tensor, rows: Sequence[int], columns: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Taps [D, KH, KW, C]: each is the sum over its places in the matrix [H' W' D, H W C]."""
    down, across = Dimension(*rows), Dimension(*columns)
    channels = whole.shape[1] // (down.size * across.size)
    parts = whole.reshape(down.outputs * across.outputs, -1, down.size, across.size, channels)
    taps = whole.new_zeros((parts.shape[1], down.kernel, across.kernel, channels), dtype=dtype)
    for output, ((tap, pixel), (beside, next_to)) in enumerate(product(down.of_outputs(), across.of_outputs())):
        taps[:, tap, beside] += parts[output, :, pixel, next_to]
    return taps


@_operator
def patches_of(pixels: torch.Tensor, rows: Sequence[int], columns: Sequence[int]) -> torch.Tensor:
    """What lies under the kernel for each output: [N, H', W', KH, KW, C] from [N, H, W, C], zeros in the padding."""
    down, across = Dimension(*rows), Dimension(*columns)
    shape = len(pixels), down.outputs, across.outputs, down.kernel, across.kernel, pixels.shape[3]
    patches = pixels.new_zeros(shape)
    for (i, (row, high)), (j, (column, wide)) in product(enumerate(down.of_taps()), enumerate(across.of_taps())):
        patches[:, row, column, i, j] = pixels[:, high, wide]
    return patches


@_operator
def pixels_of(patches: torch.Tensor, rows: Sequence[int], columns: Sequence[int]) -> torch.Tensor:
    """Pixels [N, H, W, C]: each is the sum over the patches [N, H', W', KH, KW, C] that it is in."""
    down, across = Dimension(*rows), Dimension(*columns)
    pixels = patches.new_zeros((len(patches), down.size, across.size, patches.shape[5]))
    for (i, (row, high)), (j, (column, wide)) in product(enumerate(down.of_taps()), enumerate(across.of_taps())):
        pixels[:, high, wide] += patches[:, row, column, i, j]
    return pixels


whole_of.register_autograd(
    lambda ctx, gradient: (taps_of(gradient, *ctx.dims, ctx.dtype), None, None, None), setup_context=_note
)
patches_of.register_autograd(lambda ctx, gradient: (pixels_of(gradient, *ctx.dims), None, None), setup_context=_note)


class Convolved(torch.autograd.Function):
    """A convolution of which only the gradient of the weights is computed as a product, over patches.

    That gradient takes oneDNN longest in bfloat16. Pixels [N, H, W, C] and weights [D, KH, KW, C] to [N, H', W', D].
    """

    @staticmethod
    def forward(
        ctx: Any, pixels: torch.Tensor, weight: torch.Tensor, rows: Dimension, columns: Dimension, patches: Patches
    ) -> torch.Tensor:
        """The convolution; `patches` gives those under its kernel."""
        ctx.save_for_backward(pixels, weight)
        ctx.rows, ctx.columns, ctx.patches = rows, columns, patches
        strides, paddings = zip(rows[2:], columns[2:], strict=True)
        images, kernels = pixels.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2)
        return torch.conv2d(images, kernels, None, strides, paddings).permute(0, 2, 3, 1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of pixels and weights, for those that need one."""
        pixels, weight = ctx.saved_tensors
        of_pixels = of_weights = None
        if ctx.needs_input_grad[0]:
            images, kernels, outputs = (tensor.permute(0, 3, 1, 2) for tensor in (pixels, weight, gradient))
            geometry = (*zip(ctx.rows[2:], ctx.columns[2:], strict=True), (1, 1), False, (0, 0), 1)
            found = torch.ops.aten.convolution_backward(outputs, images, kernels, None, *geometry, (True, False, False))
            of_pixels = found[0].permute(0, 2, 3, 1)
        if ctx.needs_input_grad[1]:
            patches = ctx.patches(pixels, ctx.rows, ctx.columns).flatten(3).flatten(0, 2)
            of_weights = (gradient.flatten(0, 2).t() @ patches).view(weight.shape)
        return of_pixels, of_weights, None, None, None


def as_products(model: nn.Module, *, pointwise: bool = True, small_maps: bool = True) -> None:
    """Have the model's convolutions computed as products, in place; parameters and their names stay.

    Args:
        model: is changed. Convolutions with groups, dilation or a padding other than zeros stay as they are.
        pointwise: whether to change those of 1x1.
        small_maps: whether to change the others, as far as their maps are small.
    """
    for module in model.modules():
        plain = type(module) is nn.Conv2d and module.groups == 1 and module.dilation == (1, 1)
        if plain and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            one = module.kernel_size == (1, 1) and module.padding == (0, 0)
            if pointwise if one else small_maps:
                module.__class__ = PointwiseConv2d if one else SmallMapConv2d
