"""Convolutions computed as the matrix products that they are: the same functions of the same parameters.

On CPUs oneDNN's backward pass of a convolution takes longer than that of the product, over maps of 1 x 1 and 2 x 2
pixels up to twenty times as long (`docs/performance.md`); and in such maps ResNet-50 ends on images of 32 x 32.
"""

import torch
from torch import nn
from torch.nn.functional import linear, pad


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution, as a product over pixels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W] to [N, D, H / stride, W / stride]; without a copy where they are channels-last."""
        high, wide = self.stride
        pixels = x[:, :, ::high, ::wide].permute(0, 2, 3, 1)
        return linear(pixels, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class SmallMapConv2d(nn.Conv2d):
    """A convolution that takes a map of no more pixels than its kernel has taps as one product over the whole map.

    Each output pixel is then each input pixel times the tap that meets it: no more products than the convolution has,
    and none with the padding. Larger maps are convolved.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W] to [N, D, H', W'], as `nn.Conv2d`; without a copy where they are channels-last."""
        high, wide = x.shape[2:]
        if high * wide > self.kernel_size[0] * self.kernel_size[1]:
            return super().forward(x)
        rows, above, below = self._met(high, 0)
        columns, left, right = self._met(wide, 1)
        taps = self.weight.permute(0, 2, 3, 1)
        if above or below or left or right:
            taps = pad(taps, (0, 0, left, right, above, below))
        product = torch.cat([taps[:, row, column].flatten(1) for row in rows for column in columns])
        bias = None if self.bias is None else self.bias.repeat(len(rows) * len(columns))
        flat = linear(x.permute(0, 2, 3, 1).flatten(1), product, bias)
        return flat.view(len(x), len(rows), len(columns), -1).permute(0, 3, 1, 2)

    def _met(self, size: int, axis: int) -> tuple[list[slice], int, int]:
        """Along one axis, the taps that `size` pixels meet for each output; and the zeros they need at each end."""
        kernel, stride, padding = self.kernel_size[axis], self.stride[axis], int(self.padding[axis])
        outputs = (size + 2 * padding - kernel) // stride + 1
        before, after = max(0, (outputs - 1) * stride - padding), max(0, padding + size - kernel)
        starts = [before + padding - stride * output for output in range(outputs)]
        return [slice(start, start + size) for start in starts], before, after


def as_products(model: nn.Module, *, pointwise: bool = True, small_maps: bool = True) -> None:
    """Let the model's convolutions be computed as products where they are; parameters and their names stay.

    Args:
        model: is changed. Convolutions with groups, dilation or another padding than zeros stay as they are.
        pointwise: those of 1x1.
        small_maps: the others, where the map that comes in is small enough.
    """
    for module in model.modules():
        plain = type(module) is nn.Conv2d and module.groups == 1 and module.dilation == (1, 1)
        if plain and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            one = module.kernel_size == (1, 1) and module.padding == (0, 0)
            if pointwise if one else small_maps:
                module.__class__ = PointwiseConv2d if one else SmallMapConv2d
