"""Batch norm in training with the addition beside it and the ReLU after it, in one or two kernels of a GPU each way.

PyTorch takes about eight kernels for the three, and those for channels-last bfloat16 images are slow
(`docs/performance.md`).
"""

import math
from typing import Any

import torch
import triton
from torch import nn

from rresnet.training import kernels
from rresnet.training.kernels import launch

PIXELS_IN_REGISTERS = 1024  # so many of a channel are read once, by one program; more are shared by several
_TILE = 8192  # elements that a program holds at a time where there are more
_PARTS = 256  # programs that share the pixels, at most: about two for each multiprocessor
_TYPES = (torch.float32, torch.bfloat16, torch.float16)


class BatchNormReLU(nn.BatchNorm2d):
    """Batch norm in training, with the addition and the ReLU after it."""

    relu: bool  # whether there is one
    twice: bool = False  # whether two use the result: it comes as two tensors, whose gradients are added here

    def forward(self, x: torch.Tensor, beside: torch.Tensor | None = None) -> Any:
        """ReLU(norm(x) + beside), without what there is not; all are [N, C, H, W]."""
        alike = beside is None or (beside.shape, beside.dtype) == (x.shape, x.dtype)
        if x.dtype not in _TYPES or not alike or x.numel() == x.shape[1]:  # which PyTorch refuses
            y = super().forward(x)
            y = y if beside is None else y + beside
            y = y.relu() if self.relu else y
            return (y, y) if self.twice else y
        beside = None if beside is None else beside.contiguous(memory_format=torch.channels_last)
        state = self.running_mean, self.running_var, self.momentum, self.eps
        images = x.contiguous(memory_format=torch.channels_last), beside
        return _BatchNormReLU.apply(*images, self.weight, self.bias, self.relu, self.twice, *state)


class _BatchNormReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        beside: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor,
        relu: bool,
        twice: bool,
        *state: torch.Tensor | float,
    ) -> Any:
        y, mean, scale = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        pixels, channels = x.numel() // x.shape[1], x.shape[1]
        floor = 0.0 if relu else -math.inf
        tensors = x, beside, y, weight, bias, mean, scale, *state, floor
        does = {"BESIDE": beside is not None}
        if pixels <= PIXELS_IN_REGISTERS:
            grid, sizes = _small(pixels, channels)
            launch(kernels.norm_small, grid, *tensors, pixels, channels, **sizes, **does)
        else:
            grid, sizes = _large(pixels, channels)
            sums = weight.new_empty((grid[1], 2, channels))
            launch(kernels.norm_sums, grid, x, sums, pixels, channels, **sizes)
            launch(kernels.norm_large, grid, *tensors, sums, pixels, channels, **sizes, **does)
        ctx.floor, ctx.beside = floor, beside is not None
        ctx.save_for_backward(x, y if beside is not None and relu else None, weight, bias, mean, scale)
        return (y, y.view_as(y)) if twice else y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, y, weight, bias, mean, scale = ctx.saved_tensors
        gradient, *others = (one.contiguous(memory_format=torch.channels_last) for one in gradients)
        also = others[0] if others else None
        if also is not None and y is None:  # whose kernels take one
            gradient, also = gradient + also, None
        of_x, of_weight, of_bias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
        of_sum = gradient if y is None else torch.empty_like(x)  # what comes back through the ReLU
        pixels, channels = x.numel() // x.shape[1], x.shape[1]
        tensors = gradient, also, x, y, of_sum, of_x, weight, bias, mean, scale, of_weight, of_bias, ctx.floor
        does = {"BESIDE": y is not None, "TWICE": also is not None}
        if pixels <= PIXELS_IN_REGISTERS:
            grid, sizes = _small(pixels, channels)
            launch(kernels.norm_small_backward, grid, *tensors, pixels, channels, **sizes, **does)
        else:
            grid, sizes = _large(pixels, channels)
            sums = weight.new_empty((grid[1], 2, channels))
            launch(kernels.norm_sums_backward, grid, *tensors, sums, pixels, channels, **sizes, **does)
            launch(kernels.norm_large_backward, grid, *tensors, sums, pixels, channels, **sizes, **does)
        return of_x, of_sum if ctx.beside else None, of_weight, of_bias, *[None] * 6


Grid = tuple[int, int]  # of programs: channels across, parts of the pixels down


def _small(pixels: int, channels: int) -> tuple[Grid, dict[str, int]]:
    """Grid and sizes for programs that take all pixels of some channels each: few sizes, since each is compiled."""
    tall, wide, warps = (64, 32, 4) if pixels <= 64 else (256, 16, 4) if pixels <= 256 else (1024, 16, 8)
    return (triton.cdiv(channels, wide), 1), {"TALL": tall, "WIDE": wide, "num_warps": warps}


def _large(pixels: int, channels: int) -> tuple[Grid, dict[str, int]]:
    """Grid and sizes for programs that take some pixels of some channels each."""
    wide = min(64, triton.next_power_of_2(channels))
    tall, across = _TILE // wide, triton.cdiv(channels, wide)
    parts = max(1, min(triton.cdiv(pixels, tall), _PARTS, 4 * _PARTS // across))
    return (across, parts), {"TALL": tall, "WIDE": wide, "num_warps": 8}
