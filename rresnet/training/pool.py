"""Max pooling of channels-last images in one kernel of a GPU each way.

PyTorch's kernels for this layout take over twice as long (`docs/performance.md`, "Fused kernels on a GPU").
"""

from typing import Any

import torch
import triton
from torch import nn

from rresnet.training import kernels
from rresnet.training.kernels import launch

# Pixels and channels that a program makes, and its warps: with fewer the compiler runs out of registers.
_SIZES = {"TALL": 32, "WIDE": 64, "num_warps": 8}
_LARGEST_WINDOW = 11  # whose taps are counted in 8 bits


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
    window, *others = pool.kernel_size, pool.stride, pool.padding
    small = isinstance(window, int) and window <= _LARGEST_WINDOW and all(isinstance(size, int) for size in others)
    return small and pool.dilation == 1 and not pool.ceil_mode and not pool.return_indices


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, window: int, stride: int, padding: int) -> torch.Tensor:
        images, channels, *size = x.shape
        down, across = ((length + 2 * padding - window) // stride + 1 for length in size)
        y = _empty(images, channels, down, across, like=x)
        taps = torch.empty_like(y, dtype=torch.int8)
        ctx.geometry, ctx.window = (channels, *size, down, across, stride, padding), window
        _launch(kernels.max_pool, (x, y, taps), y, ctx.geometry, window)
        ctx.save_for_backward(taps)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (taps,) = ctx.saved_tensors
        of_x = _empty(len(gradient), *ctx.geometry[:3], like=gradient)
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        _launch(kernels.max_pool_backward, (gradient, taps, of_x), of_x, ctx.geometry, ctx.window)
        return of_x, None, None, None


def _empty(*shape: int, like: torch.Tensor) -> torch.Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _launch(kernel: Any, tensors: Any, made: torch.Tensor, geometry: tuple[int, ...], window: int) -> None:
    """Launch as many programs as make all of `made`, images [N, C, H, W]."""
    pixels, channels = made.numel() // made.shape[1], made.shape[1]
    grid = triton.cdiv(pixels, _SIZES["TALL"]), triton.cdiv(channels, _SIZES["WIDE"])
    launch(kernel, grid, *tensors, pixels, *geometry, WINDOW=window, **_SIZES)
