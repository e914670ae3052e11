"""How near to what this machine allows does the tuned recipe come on its CPU? Operation by operation.

    python benchmarks/roofline.py [--repeats 5] [--batch-size 256]          (about 4 minutes on two cores)

No operation of a step can take less time than its FLOPs at the machine's matrix rate, nor than its bytes at its copy
rate (the roofline: Williams, Waterman, Patterson, Communications of the ACM 52(4), 2009). The sum over the operations
of a step that fuses nothing, and Adam's 28 bytes a parameter, is what there is to reach; it allows less than the matrix
rate, which a step of mere products would reach. Prints that, and how much of it the recipe reaches, as medians.
"""

import sys
from statistics import median
from typing import Any

import torch
import torchvision
from common import arguments, cell, measure, verdict, workbenches
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from rresnet import grid, hardware, limits

ADAM_BYTES = 28  # a parameter: weight, gradient and both moments read, all but the gradient written


class Floor(TorchDispatchMode):
    """Adds up the least seconds of each operation on a machine of given rates; views take none."""

    def __init__(self, matrix_rate: float, copy_rate: float, bytes_share: float) -> None:
        super().__init__()
        self.matrix_rate, self.copy_rate, self.bytes_share = matrix_rate, copy_rate, bytes_share
        self.seconds, self.flops = 0.0, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            counter = flop_registry.get(func._overloadpacket)
            flops = counter(*args, **(kwargs or {}), out_val=result) if counter else 0
            touched = [*args, *(kwargs or {}).values(), *(result if isinstance(result, tuple | list) else [result])]
            moved = sum(t.numel() * t.element_size() for t in touched if isinstance(t, torch.Tensor))
            self.flops += flops
            self.seconds += max(flops / self.matrix_rate, self.bytes_share * moved / self.copy_rate)
        return result


def floor_of_a_step(batch_size: int, limit: limits.Limits, *, half: bool) -> tuple[float, float]:
    """Least seconds of a ResNet-50 step at 32 x 32, and its FLOPs."""
    with torch.device("meta"):
        network = torchvision.models.get_model("resnet50", weights=None, num_classes=10)
        images, labels = torch.empty(batch_size, 3, 32, 32), torch.empty(batch_size, dtype=torch.long)
    share = 0.5 if half else 1.0
    with Floor(limit.matrix_flops_per_second, limit.copy_bytes_per_second, share) as floor:
        torch.autograd.backward(nn.functional.cross_entropy(network(images), labels))
    adam = ADAM_BYTES * sum(p.numel() for p in network.parameters()) / limit.copy_bytes_per_second
    return floor.seconds + adam, floor.flops


def main() -> int:
    options = arguments(__doc__, repeats=5, batch_size=256)
    axes = vars(grid.tuned("cpu", hardware.probe()))
    (bench,) = workbenches([cell(model="resnet50", batch_size=options.batch_size, **axes)])
    rates = []
    for _ in range(options.repeats):
        rates.append(measure(bench, 2.0).images_per_second or 0.0)
        print(f"{rates[-1]:.1f} images/s", flush=True)
    limit, precision = bench.limit, axes["precision"]
    seconds, flops = floor_of_a_step(options.batch_size, limit, half=precision == "bf16")
    allowed, all_products = options.batch_size / seconds, options.batch_size * limit.matrix_flops_per_second / flops
    rate = median(rates)
    print(
        f"{precision}: matrix product {limit.matrix_flops_per_second / 1e9:.0f} GFLOP/s, copy "
        f"{limit.copy_bytes_per_second / 1e9:.1f} GB/s\n"
        f"tuned batch {options.batch_size}: {rate:.1f} images/s, {rate / all_products:.0%} of the matrix rate\n"
        f"the roofline allows {allowed:.1f} images/s, {allowed / all_products:.0%} of the matrix rate"
    )
    return verdict(f"{rate / allowed:.0%} of what the roofline allows", rate / allowed >= 0.65)


if __name__ == "__main__":
    sys.exit(main())
