"""How near to what this machine allows does the tuned recipe come? Operation by operation.

    python benchmarks/roofline.py [--repeats 9] [--batch-size 256] [--device cpu]   (about 4 minutes on two cores)

No operation of a step can take less time than its FLOPs at the machine's matrix rate, nor than its bytes at its copy
rate (the roofline: Williams, Waterman, Patterson, Communications of the ACM 52(4), 2009). The least time of a step is
the sum over its operations, if nothing is fused, and Adam's 28 bytes a parameter. It allows less than the matrix rate,
which only a step of nothing but matrix products would reach. The recipe and the machine's rates are timed in turns,
again and again, because the rates drift.

Prints, as medians, what share of the matrix rate the roofline allows, and how much of that the recipe reaches. Then,
for each kind of operation, its share of a step and how much of its own roofline, at the fastest rates seen, it reaches;
on a GPU this is of the eager step's kernels, without the time between them.
"""

import itertools
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from common import arguments, axes_of, cell, measure, verdict, workbenches
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from rresnet.cell import Cell
from rresnet.training import limits, model
from rresnet.training.timing import synchronize
from rresnet.training.workbench import Workbench

WATCHED_STEPS = 8
OPERATIONS = 8  # that are told, those that take longest


class Floor(TorchDispatchMode):
    """Adds up the least seconds of each operation on a machine of given rates; views take none."""

    def __init__(self, matrix_rate: float, copy_rate: float, bytes_share: float) -> None:
        super().__init__()
        self.matrix_rate, self.copy_rate, self.bytes_share = matrix_rate, copy_rate, bytes_share
        self.seconds, self.flops = defaultdict[str, float](float), 0.0  # seconds by operation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func is not torch.ops.aten._unsafe_view.default:
            counter = flop_registry.get(func._overloadpacket)
            flops = counter(*args, **(kwargs or {}), out_val=result) if counter else 0
            touched = [*args, *(kwargs or {}).values(), *(result if isinstance(result, tuple | list) else [result])]
            moved = sum(t.numel() * t.element_size() for t in touched if isinstance(t, torch.Tensor))
            self.flops += flops
            least = max(flops / self.matrix_rate, self.bytes_share * moved / self.copy_rate)
            self.seconds[str(func._overloadpacket).replace(".", "::")] += least
        return result


def floor_of_a_step(one: Cell, limit: limits.Limits) -> tuple[Mapping[str, float], float]:
    """Least seconds of a step of the cell by operation, and its FLOPs."""
    with torch.device("meta"):
        network = model.of(one, 10)
        images = torch.empty(one.batch_size, 3, one.image_size, one.image_size)
        labels = torch.empty(one.batch_size, dtype=torch.long)
    share = 0.5 if one.precision == "bf16" else 1.0
    with Floor(limit.matrix_flops_per_second, limit.copy_bytes_per_second, share) as floor:
        torch.autograd.backward(nn.functional.cross_entropy(network(images), labels))
    parameters = sum(p.numel() for p in network.parameters())
    floor.seconds["aten::_fused_adam_"] = limits.ADAM_BYTES * parameters / limit.copy_bytes_per_second
    return floor.seconds, floor.flops


class Spent(TorchDispatchMode):
    """Adds up the seconds of each operation on a CPU.

    PyTorch's profiler would do, but the memory that it takes for its events makes some operations far longer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds = defaultdict[str, float](float)  # by operation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        self.seconds[str(func._overloadpacket).replace(".", "::")] += time.perf_counter() - start
        return result


def on_the_cpu(bench: Workbench) -> Mapping[str, float]:
    """Seconds of each operation over the watched steps."""
    with Spent() as spent:
        for raw in itertools.islice(bench.batches, WATCHED_STEPS):
            bench.take_step(raw)
    return spent.seconds


def on_the_gpu(bench: Workbench) -> Mapping[str, float]:
    """Seconds of each operation's kernels over the watched steps."""
    with torch.profiler.profile() as profile:
        for raw in itertools.islice(bench.batches, WATCHED_STEPS):
            bench.take_step(raw)
        synchronize(bench.device)
    told = ((event.key, event.self_device_time_total / 1e6) for event in profile.key_averages())
    found = {name: seconds for name, seconds in told if name.startswith("aten::") and seconds}
    assert found, "the profiler told of no operation"
    return found


def by_operation(bench: Workbench, floor: Mapping[str, float]) -> None:
    """Print what a step spends its time on, and how near each kind of operation comes to its own least time."""
    bench.apply_process_settings()
    spent = on_the_gpu(bench) if bench.device.type == "cuda" else on_the_cpu(bench)
    whole = sum(spent.values())
    for name, seconds in sorted(spent.items(), key=lambda one: -one[1])[:OPERATIONS]:
        reached = f", {floor[name] * WATCHED_STEPS / seconds:.0%} of its roofline" if name in floor else ""
        print(f"{name}: {seconds / whole:.1%} of a step{reached}")


def main() -> int:
    options = arguments(__doc__, repeats=9, batch_size=256, device="cpu")
    axes = axes_of("tuned", options.device)
    one = cell(model="resnet50", batch_size=options.batch_size, **axes)
    (bench,) = workbenches([one])
    kind = bench.device.type
    shares, allowed = [], []
    for _ in range(options.repeats):
        rate = measure(bench, 2.0).images_per_second or 0.0
        limit = limits.measure(kind, one.precision, one.cpu_threads)  # of the same moment
        limits.seen(kind, one.precision, one.cpu_threads, look=True)
        seconds, flops = floor_of_a_step(one, limit)
        all_products = limit.matrix_flops_per_second * one.batch_size / flops
        shares.append(rate / all_products)
        allowed.append(one.batch_size / sum(seconds.values()) / all_products)
        print(
            f"{rate:.1f} images/s; matrix product {limit.matrix_flops_per_second / 1e9:.0f} GFLOP/s, copy "
            f"{limit.copy_bytes_per_second / 1e9:.1f} GB/s; {shares[-1]:.0%} of the matrix rate, where the roofline "
            f"allows {allowed[-1]:.0%}",
            flush=True,
        )
    reached = median(share / most for share, most in zip(shares, allowed, strict=True))
    if one.execution != "eager":  # whose operations can be told apart
        (bench,) = workbenches([replace(one, execution="eager")])
    by_operation(bench, floor_of_a_step(one, limits.seen(kind, one.precision, one.cpu_threads))[0])
    print(f"{one.precision}, {median(shares):.0%} of the matrix rate, where {median(allowed):.0%} is allowed")
    return verdict(f"{reached:.0%} of what the roofline allows", reached >= 0.65)


if __name__ == "__main__":
    sys.exit(main())
