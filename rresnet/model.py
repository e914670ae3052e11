"""The network and its optimizer."""

import torch
import torchvision
from torch import nn

from rresnet.config import Cell, UsageError

LEARNING_RATE = 1e-3  # the blog's


def check_name(name: str) -> None:
    """Raise UsageError unless torchvision has a classification model of that name."""
    import difflib

    valid = torchvision.models.list_models(module=torchvision.models)
    if name not in valid:
        close = difflib.get_close_matches(name, valid, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "for example resnet18, resnet50, vit_b_16."
        raise UsageError(f"--model {name} is not a torchvision classification model; {hint}")


def build(cell: Cell, classes: int, device: torch.device) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The cell's model, with weights drawn from its seed, and Adam over them, on `device`.

    The weights depend on the seed and the model alone, so that all recipes start from the same point.
    """
    torch.manual_seed(cell.seed)
    model = torchvision.models.get_model(cell.model, weights=None, num_classes=classes)
    memory_format = torch.channels_last if cell.channels_last else torch.contiguous_format
    model = model.to(device=device, memory_format=memory_format)
    return model, optimizer_of(model, cell)


def optimizer_of(model: nn.Module, cell: Cell) -> torch.optim.Optimizer:
    """The blog's Adam, in its fused kernel if the cell says so, and fit to be captured in a graph where it will be."""
    return torch.optim.Adam(
        model.parameters(),
        lr=LEARNING_RATE,
        fused=True if cell.fused_optimizer else None,
        capturable=cell.device == "gpu" and cell.execution != "eager",
    )
