"""Networks of few channels, with all that a ResNet has, and their images; on the GPU where there is one."""

import copy

import torch
from torch import nn
from torchvision.models.resnet import Bottleneck

from rresnet.training import convolution

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"


def small_resnet():
    stem = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
    wider = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
    blocks = Bottleneck(8, 2), Bottleneck(8, 4, 2, wider), Bottleneck(16, 4), Bottleneck(16, 4)
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


def laid_out(model, pointwise=True, device="cpu"):
    """The model as a GPU's `tuned` has it."""
    convolution.as_products(model, pointwise=pointwise, small_maps=False)
    return model.to(device).to(memory_format=torch.channels_last)


def images(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(shape, generator=generator).to(DEVICE, dtype)
    return drawn.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else drawn


def as_kind(kind, module, **more):
    other = copy.deepcopy(module)
    other.__class__ = kind
    vars(other).update(more)
    return other


def far(found, expected):
    """Norm of the difference over that of the expected value, in float64."""
    return ((found.double() - expected).norm() / expected.norm()).item()
