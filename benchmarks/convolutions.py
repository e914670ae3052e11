"""What do ResNet-50's convolutions cost on this CPU, as convolutions and as the matrix products that they are?

    python benchmarks/convolutions.py [--batch-size 256] [--precision fp32|bf16]          (about a minute on two cores)

For each kind of convolution that the network has on images of 32 x 32, channels-last: the fastest of 5 forward passes
and of 5 backward passes, oneDNN's convolution beside `rresnet.training.convolution`. On both sides, GFLOP/s count the
convolution's own FLOPs, including those on the padding.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable
from copy import deepcopy

import torch
import torchvision
from common import arguments
from torch import nn

from rresnet.training import convolution

Kind = tuple[int, int, int, int, int, int]  # channels in and out, kernel, stride, padding, pixels of a side


def kinds(model: nn.Module) -> Counter[Kind]:
    """How many convolutions of each kind a model has on images of 32 x 32."""
    found: Counter[Kind] = Counter()

    def note(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            size = (*module.kernel_size[:1], *module.stride[:1], int(module.padding[0]), inputs[0].shape[2])
            found[(module.in_channels, module.out_channels, *size)] += 1

    for module in model.modules():
        module.register_forward_hook(note)
    with torch.no_grad():
        model.eval()(torch.randn(1, 3, 32, 32))
    return found


def fastest(call: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """The least of both figures in five calls."""
    forward, backward = zip(*(call() for _ in range(5)), strict=True)
    return min(forward), min(backward)


def cost(module: nn.Module, images: torch.Tensor) -> tuple[float, float]:
    """Seconds of one pass forward, and backward."""
    wanted = [t for t in (images, *module.parameters()) if t.requires_grad]
    began = time.perf_counter()
    output = module(images)
    forward = time.perf_counter() - began
    gradient = torch.ones_like(output)
    began = time.perf_counter()
    torch.autograd.grad(output, wanted, gradient)
    return forward, time.perf_counter() - began


def main() -> int:
    options = arguments(__doc__, batch_size=256, precision="fp32")
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    total = [0.0, 0.0]
    print(f"{options.precision}, batch {options.batch_size}; ms forward + backward, and GFLOP/s backward")
    for (c, d, kernel, stride, padding, size), count in kinds(torchvision.models.resnet50()).items():
        conv = nn.Conv2d(c, d, kernel, stride, padding, bias=False, dtype=dtype).to(memory_format=torch.channels_last)
        product = deepcopy(conv)
        convolution.as_products(product)
        images = torch.randn(options.batch_size, c, size, size, dtype=dtype)
        images = images.contiguous(memory_format=torch.channels_last)
        images.requires_grad_(c != 3)
        flops = 2 * 2 * conv(images).numel() * c * kernel**2
        told = []
        for side, module in enumerate((conv, product)):
            forward, backward = fastest(lambda module=module, images=images: cost(module, images))
            total[side] += count * (forward + backward)
            told.append(f"{1e3 * forward:6.1f} + {1e3 * backward:6.1f} ms {flops / backward / 1e9:6.0f}")
        which = f"{count} x {c:4} -> {d:4}, {kernel}x{kernel} / {stride} on {size:2}x{size:2}"
        print(f"{which}: {told[0]}   product {told[1]}")
    print(f"all of a step: {total[0]:.2f} s as convolutions, {total[1]:.2f} s as products: {total[0] / total[1]:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
