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
    if cell.pointwise == "linear":
        _pointwise_as_linear(model)
    memory_format = torch.channels_last if cell.channels_last else torch.contiguous_format
    model = model.to(device=device, memory_format=memory_format)
    return model, optimizer_of(model, cell)


class _PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution as what it is, a matrix product over pixels: the same function of the same parameters.

    On CPUs oneDNN's backward pass of the convolution is much slower than that of the product (docs/performance.md).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W] to [N, D, H / stride, W / stride]; without a copy where they are channels-last."""
        high, wide = self.stride
        pixels = x[:, :, ::high, ::wide].permute(0, 2, 3, 1)
        return nn.functional.linear(pixels, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def _pointwise_as_linear(model: nn.Module) -> None:
    """Let the model's 1x1 convolutions be computed so; parameters and their names stay."""
    for module in model.modules():
        plain = type(module) is nn.Conv2d and module.groups == 1 and module.padding in (0, (0, 0))
        if plain and module.kernel_size == (1, 1):
            module.__class__ = _PointwiseConv2d


def optimizer_of(model: nn.Module, cell: Cell) -> torch.optim.Optimizer:
    """The blog's Adam, in its fused kernel if the cell says so, and fit to be captured in a graph where it will be."""
    return torch.optim.Adam(
        model.parameters(),
        lr=LEARNING_RATE,
        fused=True if cell.fused_optimizer else None,
        capturable=cell.device == "gpu" and cell.execution != "eager",
    )
