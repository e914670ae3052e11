"""One training step: precision and execution mode of a cell. The seam where other modes of execution go."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rresnet.config import Cell

Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # images [N, 3, S, S], labels [N] -> loss []

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def set_precision(cell: Cell) -> None:
    """Set PyTorch's process-wide switches so that the cell's precision is what really runs.

    `fp32` is IEEE everywhere; cuDNN's convolutions would otherwise run in TF32. The blog's script leaves matrix
    products at PyTorch's default, IEEE, and so does its recipe.
    """
    tf32 = cell.precision == "tf32"
    cudnn: Any = torch.backends.cudnn  # its precision switches are missing from the annotations
    cudnn.conv.fp32_precision = "tf32" if tf32 else "ieee"
    torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 and cell.recipe != "blog" else "ieee"
    cudnn.benchmark = cell.recipe != "blog"
    mkldnn: Any = torch.backends.mkldnn
    mkldnn.conv.fp32_precision = mkldnn.matmul.fp32_precision = "ieee"


def precision_in_effect(cell: Cell) -> tuple[str, str, str | None]:
    """What PyTorch's switches say now: fp32 arithmetic of convolutions, of matrix products, and autocast's type."""
    backends: Any = torch.backends
    conv, matmul = (
        (backends.cudnn.conv, backends.cuda.matmul)
        if cell.device == "gpu"
        else (backends.mkldnn.conv, backends.mkldnn.matmul)
    )
    dtype = str(_AUTOCAST[cell.precision]).removeprefix("torch.") if cell.precision in _AUTOCAST else None
    return conv.fp32_precision, matmul.fp32_precision, dtype


def autocast(cell: Cell) -> torch.autocast:
    """The context in which the cell's forward pass runs."""
    kind = "cuda" if cell.device == "gpu" else "cpu"
    return torch.autocast(
        kind, dtype=_AUTOCAST.get(cell.precision, torch.bfloat16), enabled=cell.precision in _AUTOCAST
    )


def eager(cell: Cell, model: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    """The step as the blog writes it, operation by operation."""
    loss_fn = nn.CrossEntropyLoss()
    # fp16's range is too small for gradients: they are scaled up and back (Micikevicius et al. 2018). Else a no-op.
    scaler = torch.amp.GradScaler("cuda", enabled=cell.precision == "fp16")

    def step(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with autocast(cell):
            loss: torch.Tensor = loss_fn(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(scaler.scale(loss))
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return step


MODES: dict[str, Callable[[Cell, nn.Module, torch.optim.Optimizer], Step]] = {"eager": eager}


def build(cell: Cell, model: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    """The cell's training step."""
    return MODES[cell.execution](cell, model, optimizer)


class State:
    """A copy of all that a step changes, so that a warm-up can be undone and has not trained the model."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._copies = [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
        self._before = {id(t): t.clone() for t in optimizer_tensors(optimizer)}
        self._random = torch.get_rng_state()
        self._cuda_random = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    @torch.no_grad()
    def restore(self) -> None:
        """Write the copies back in place: whoever holds the tensors (a captured graph, DDP) goes on holding them."""
        for tensor, copy in self._copies:
            tensor.copy_(copy)
            tensor.grad = None
        for tensor in optimizer_tensors(self._optimizer):  # Adam's state starts at zero when it did not exist yet
            before = self._before.get(id(tensor))
            tensor.zero_() if before is None else tensor.copy_(before)
        torch.set_rng_state(self._random)
        torch.cuda.set_rng_state_all(self._cuda_random)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The tensors of the optimizer's state."""
    return [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
