"""Max pooling of channels-last images in one kernel of a GPU each way.

PyTorch's kernels for this layout take four times as long or more (`docs/performance.md`).
"""

from typing import Any

import torch
import triton
from torch import nn

from rresnet.training import kernels
from rresnet.training.kernels import launch

_TALL = 32  # pixels that a program makes, of _WIDE channels
_WIDE = 64


class FastMaxPool2d(nn.MaxPool2d):
    """Max pooling with square windows, in training."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W] to [N, C, H', W']."""
        y: torch.Tensor = _MaxPool.apply(
            x.contiguous(memory_format=torch.channels_last), self.kernel_size, self.stride, self.padding
        )
        return y


def is_square(pool: nn.MaxPool2d) -> bool:
    """Whether `FastMaxPool2d` can do what this does."""
    sizes = all(isinstance(size, int) for size in (pool.kernel_size, pool.stride, pool.padding))
    return sizes and pool.dilation == 1 and not pool.ceil_mode and not pool.return_indices


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, window: int, stride: int, padding: int) -> torch.Tensor:
        images, channels, *size = x.shape
        down, across = ((length + 2 * padding - window) // stride + 1 for length in size)
        y = _empty(images, channels, down, across, like=x)
        taps = torch.empty_like(y, dtype=torch.int8)
        ctx.geometry = channels, *size, down, across, stride, padding
        ctx.window = window
        grid = (triton.cdiv(images * down * across, _TALL), triton.cdiv(channels, _WIDE))
        launch(
            kernels.max_pool,
            grid,
            x,
            y,
            taps,
            images * down * across,
            *ctx.geometry,
            WINDOW=window,
            TALL=_TALL,
            WIDE=_WIDE,
        )
        ctx.save_for_backward(taps)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (taps,) = ctx.saved_tensors
        channels, height, width, *_ = ctx.geometry
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_x = _empty(len(gradient), channels, height, width, like=gradient)
        pixels = len(gradient) * height * width
        grid = (triton.cdiv(pixels, _TALL), triton.cdiv(channels, _WIDE))
        launch(
            kernels.max_pool_backward,
            grid,
            gradient,
            taps,
            of_x,
            pixels,
            *ctx.geometry,
            WINDOW=ctx.window,
            TALL=_TALL,
            WIDE=_WIDE,
        )
        return of_x, None, None, None


def _empty(*shape: int, like: torch.Tensor) -> torch.Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
