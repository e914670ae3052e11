"""A model's layers with fused kernels, for a captured step on a GPU; those that can wait run beside the others.

A captured step of small maps takes as long as its kernels take one after another, each a few microseconds.
"""

from typing import Any

import torch
from torch import nn

from rresnet.training import adam, gpu_norm
from rresnet.training.convolution import PointwiseConv2d
from rresnet.training.fusion import as_kind, called_once, fused
from rresnet.training.layers import AllLayers, Copies
from rresnet.training.pool import FastMaxPool2d, is_square
from rresnet.training.side import SideConv2d, SideLinear, SidePointwiseConv2d, SideStreams

_ON_THE_SIDE: dict[type, Any] = {nn.Conv2d: SideConv2d, PointwiseConv2d: SidePointwiseConv2d, nn.Linear: SideLinear}


class FusedLayers(AllLayers):
    """Batch norms that add and rectify, one kernel for a max pooling, and weights that learn on the side.

    The model is traced and stays what it is: what computes is another, which shares its parameters and buffers. The
    numbers are the same but for rounding, for models whose layers share no weights and all take part in each step.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None, optimizer: torch.optim.Optimizer) -> None:
        """`dtype` is what autocast casts to, None where it is off; `optimizer` is the model's.

        Images are to be channels-last, on a GPU. Raises ValueError if the optimizer is not Adam, or has more than that.
        """
        super().__init__(model, dtype)
        adam.check(optimizer)
        traced = fused(model, gpu_norm)
        once = {name: traced.get_submodule(name) for name in called_once(traced)}
        for name, module in once.items():
            if type(module) is nn.MaxPool2d and is_square(module):
                traced.set_submodule(name, as_kind(FastMaxPool2d, module))
        learners: dict[str, Any] = {name: module for name, module in once.items() if _can_learn_on_the_side(module)}
        self._side = SideStreams([module.weight for module in learners.values()], dtype, optimizer)
        for place, (name, module) in enumerate(learners.items()):
            traced.set_submodule(name, as_kind(_ON_THE_SIDE[type(module)], module, side=self._side, place=place))
            self._weights.pop(f"{name}.weight", None)
        traced.recompile()
        self._model = traced
        self._cast_on_the_side = [f"{name}.weight" for name in learners] if dtype else []

    def begin(self) -> Copies:
        """Count the batch; return copies of the weights that autocast would cast."""
        return *super().begin(), *self._side.begin()

    @property
    def _copied(self) -> list[str]:
        return [*super()._copied, *self._cast_on_the_side]

    def finish(self) -> None:
        """Wait for all weights to have learnt."""
        self._side.join()


def _can_learn_on_the_side(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        padded_with_zeros = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return type(module) in _ON_THE_SIDE and module.bias is None and padded_with_zeros
    return type(module) in _ON_THE_SIDE
