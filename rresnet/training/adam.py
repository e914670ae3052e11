"""Adam's update of one weight in one kernel of a GPU, from a gradient in the precision that it was computed in.

PyTorch's fused Adam asks for a gradient as precise as the weight, and gives few programs to few weights: it updates
layer by layer at a fraction of the memory's speed (`docs/performance.md`).
"""

import math
from typing import Any

import torch
import triton

from rresnet.training import kernels
from rresnet.training.kernels import launch

_BLOCK = 2048  # weights that a program updates at a time
_PROGRAMS = 64  # at most: they run beside others


def check(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError unless `update` does what the optimizer would do."""
    (group, *others), more = optimizer.param_groups, ("weight_decay", "amsgrad", "maximize")
    if others or not isinstance(optimizer, torch.optim.Adam) or any(group[name] for name in more):
        raise ValueError(
            f"fused kernels have Adam alike for all weights, and without {', '.join(more)}, which this "
            f"{type(optimizer).__name__} is not: use --kernels pytorch"
        )


def steps_of(weights: list[torch.Tensor], optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The counters of the weights' updates, in the optimizer's state, which is made where there is none."""
    for weight in weights:
        state = optimizer.state[weight]
        if not state:
            state["step"] = torch.zeros((), device=weight.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
    return [optimizer.state[weight]["step"] for weight in weights]


def laid_out(gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The gradient, laid out in memory as the weight is."""
    if gradient.stride() == weight.stride():
        return gradient
    return torch.empty_like(weight, dtype=gradient.dtype).copy_(gradient)


def update(weight: torch.Tensor, gradient: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Update the weight, which is dense in memory, and its moments; its step has been counted.

    The formula is that of Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2015), algorithm 1.
    """
    state, (group,) = optimizer.state[weight], optimizer.param_groups
    betas: tuple[float, float] = group["betas"]
    rates: dict[str, Any] = {
        "rate": group["lr"],
        "eps": group["eps"],
        "new": 1 - betas[0],
        "new_square": 1 - betas[1],
        "log_beta": math.log(betas[0]),
        "log_beta_square": math.log(betas[1]),
    }
    moments = state["exp_avg"], state["exp_avg_sq"]
    grid = (min(triton.cdiv(weight.numel(), _BLOCK), _PROGRAMS),)
    launch(
        kernels.adam,
        grid,
        weight,
        gradient,
        *moments,
        state["step"],
        weight.numel(),
        **rates,
        BLOCK=_BLOCK,
        num_warps=8,
    )
