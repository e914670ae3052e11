"""The kernels of `rresnet.training.norm` on a GPU, in Triton: how many programs share the pixels, and how."""

from typing import Any

import torch
import triton

from rresnet.training import kernels
from rresnet.training.kernels import launch

types = (torch.float32, torch.bfloat16, torch.float16)
PIXELS_IN_REGISTERS = 1024  # so many of a channel are read once, by one program; more are shared by several
_TILE = 8192  # elements that a program holds at a time where there are more
_PARTS = 256  # programs that share the pixels, at most: about two for each multiprocessor

Grid = tuple[int, int]  # of programs: channels across, parts of the pixels down


def norm(x: torch.Tensor, beside: torch.Tensor | None, *others: Any) -> None:
    """Compute what `native.norm` does, whose schema says what is written."""
    pixels, channels = x.numel() // x.shape[1], x.shape[1]
    does = {"BESIDE": beside is not None}
    if pixels <= PIXELS_IN_REGISTERS:
        grid, sizes = _small(pixels, channels)
        launch(kernels.norm_small, grid, x, beside, *others, pixels, channels, **sizes, **does)
    else:
        grid, sizes = _large(pixels, channels)
        sums = x.new_empty((grid[1], 2, channels), dtype=torch.float32)
        launch(kernels.norm_sums, grid, x, sums, pixels, channels, **sizes)
        launch(kernels.norm_large, grid, x, beside, *others, sums, pixels, channels, **sizes, **does)


def norm_backward(
    gradient: torch.Tensor, also: torch.Tensor | None, x: torch.Tensor, y: torch.Tensor | None, *others: Any
) -> None:
    """The same for `native.norm_backward`."""
    pixels, channels = x.numel() // x.shape[1], x.shape[1]
    tensors = gradient, also, x, y, *others
    does = {"BESIDE": y is not None, "TWICE": also is not None}
    if pixels <= PIXELS_IN_REGISTERS:
        grid, sizes = _small(pixels, channels)
        launch(kernels.norm_small_backward, grid, *tensors, pixels, channels, **sizes, **does)
    else:
        grid, sizes = _large(pixels, channels)
        sums = x.new_empty((grid[1], 2, channels), dtype=torch.float32)
        launch(kernels.norm_sums_backward, grid, *tensors, sums, pixels, channels, **sizes, **does)
        launch(kernels.norm_large_backward, grid, *tensors, sums, pixels, channels, **sizes, **does)


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
