"""How a step goes through a model's layers: each by itself, or with their common work done for all at once."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from rresnet.training.convolution import SmallMapConv2d

Copies = tuple[torch.Tensor, ...]  # of the weights, in the precision that a step computes in


class EachLayer:
    """Each layer by itself, as PyTorch does it."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def begin(self) -> Copies:
        """Do what comes first in a step; return the copies of weights that `scores` takes."""
        return ()

    def scores(self, copies: Copies, images: torch.Tensor) -> torch.Tensor:
        """The model's scores, with the copies that `begin` returned: images float [N, 3, S, S] to [N, classes]."""
        result: torch.Tensor = self._model(images)
        return result

    def finish(self) -> None:
        """Do what comes last in a step."""


class AllLayers(EachLayer):
    """One kernel casts the weights of all layers, one their gradients, and one counts the batch for all batch norms.

    Under autocast a separate kernel casts each weight and each gradient, and another counts for each batch norm. None
    of them takes longer than a kernel takes to begin, and a captured step has nothing else to wait for: they are a
    fifth of its kernels (`docs/performance.md`). The numbers are the same, for models whose layers share no weights and
    all take part in each step.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None) -> None:
        """`dtype` is what autocast casts to; None where it is off."""
        super().__init__(model)
        self._dtype = dtype
        self._weights = dict(_cast_by_autocast(model)) if dtype else {}
        self._counters = dict(_counters(model))

    def begin(self) -> Copies:
        """Count the batch; return copies of the weights that autocast would cast, through which their gradients go."""
        if self._counters:
            torch._foreach_add_(list(self._counters.values()), 1)
        if not self._weights:
            return ()
        copies: Copies = _Cast.apply(self._dtype, *self._weights.values())
        return copies

    @property
    def _copied(self) -> list[str]:
        return list(self._weights)

    def scores(self, copies: Copies, images: torch.Tensor) -> torch.Tensor:
        """The model's scores, computed with the copies in place of the weights, and without counting."""
        instead: dict[str, Any] = {**dict(zip(self._copied, copies, strict=True)), **dict.fromkeys(self._counters)}
        result: torch.Tensor = torch.func.functional_call(self._model, instead, (images,))
        return result


def _cast_by_autocast(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and weights of convolutions and linear layers, except ours that cast what they make of their weights."""
    for name, module in model.named_modules():
        layer = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)
        if layer and not isinstance(module, SmallMapConv2d):
            yield from ((f"{name}.{own}" if name else own, p) for own, p in module.named_parameters(recurse=False))


def _counters(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and counters of the batch norms that only keep the count; those without a momentum average by it."""
    for name, module in model.named_modules():
        counts = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is not None
        if counts and isinstance(module.num_batches_tracked, torch.Tensor):
            yield f"{name}.num_batches_tracked" if name else "num_batches_tracked", module.num_batches_tracked


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: torch.Tensor) -> Copies:
        ctx.dtypes = [weight.dtype for weight in weights]
        copies = tuple(torch.empty_like(weight, dtype=dtype) for weight in weights)
        torch._foreach_copy_(copies, weights)
        return copies

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cast = [torch.empty_like(one, dtype=dtype) for one, dtype in zip(gradients, ctx.dtypes, strict=True)]
        torch._foreach_copy_(cast, gradients)
        return None, *cast
