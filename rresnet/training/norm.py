"""Batch norm in training with the addition beside it and the ReLU after it, in one or two kernels each way.

PyTorch takes several for the three, each of which goes through the memory once or more, and on a GPU those for
channels-last bfloat16 images are slow (`docs/performance.md`).
"""

import math
from typing import Any

import torch
from torch import nn


class BatchNormReLU(nn.BatchNorm2d):
    """Batch norm with the addition and the ReLU after it."""

    kernels: Any  # the module that computes in training: `native` on a CPU, `gpu_norm` on a GPU
    relu: bool  # whether there is one
    twice: bool = False  # whether two use the result: it comes as two tensors, whose gradients are added here

    def forward(self, x: torch.Tensor, beside: torch.Tensor | None = None) -> Any:
        """ReLU(norm(x) + beside), without what there is not; all are [N, C, H, W]."""
        alike = beside is None or (beside.shape, beside.dtype) == (x.shape, x.dtype)
        several = x.numel() > x.shape[1]  # pixels; PyTorch refuses a single one
        typed = x.dtype in self.kernels.types and self.weight.dtype == torch.float32  # which kernels take them to be
        if not (self.training and typed and alike and several):
            y = super().forward(x)
            y = y if beside is None else y + beside
            y = y.relu() if self.relu else y
            return (y, y) if self.twice else y
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        beside = None if beside is None else beside.contiguous(memory_format=torch.channels_last)
        images = x.contiguous(memory_format=torch.channels_last), beside
        state = self.running_mean, self.running_var, self.momentum, self.eps
        return _BatchNormReLU.apply(self.kernels, *images, self.weight, self.bias, self.relu, self.twice, *state)


class _BatchNormReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernels: Any,
        x: torch.Tensor,
        beside: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor,
        relu: bool,
        twice: bool,
        *state: Any,
    ) -> Any:
        y, mean, scale = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        floor = 0.0 if relu else -math.inf
        kernels.norm(x, beside, y, weight, bias, mean, scale, *state, floor)
        ctx.kernels, ctx.floor, ctx.beside = kernels, floor, beside is not None
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
        images = gradient, also, x, y, of_sum, of_x
        ctx.kernels.norm_backward(*images, weight, bias, mean, scale, of_weight, of_bias, ctx.floor)
        return None, of_x, of_sum if ctx.beside else None, of_weight, of_bias, *[None] * 6
