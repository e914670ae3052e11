"""What is each choice of a captured step worth on a GPU? Variants of `tuned` in turns, in one process.

    python benchmarks/captured.py [--batches 64 1024] [--repeats 8] [--model resnet50] [--no-search]   (a GPU)

The variants, each a step captured as one CUDA graph:
  each layer casts its weights and counts its batches by itself, as PyTorch does;
  both are done for all layers at once (`rresnet.training.layers`), as in the next two;
  1x1 convolutions are computed as matrix products;
  those over small maps are as well;
  `tuned` as it is: 1x1 convolutions as products, fused kernels, and weights that learn on the side
  (`rresnet.training.fusion`);
  the step is compiled, with only 1x1 convolutions as matrix products.
Prints images per second, how long it took to make the step ready, and the ratio to the first variant with its interval.
--no-search leaves out cuDNN's search for its fastest kernels in all variants. A process keeps the kernels that it has
found, so what the search is worth takes a second run to tell.
"""

import argparse
import sys
from statistics import median
from unittest import mock

import torch
from common import axes_of, cell, images, measure, workbench
from torch import nn

from rresnet.analysis.statistics import in_order, log_mean_interval
from rresnet.cell import Cell
from rresnet.training import step
from rresnet.training.layers import EachLayer
from rresnet.training.workbench import Workbench

CONV = {"pointwise": "conv", "kernels": "pytorch"}
LINEAR = {"pointwise": "linear", "kernels": "pytorch"}
EACH = "each layer by itself"
VARIANTS: dict[str, dict[str, object]] = {
    EACH: CONV,
    "all layers at once": CONV,
    "1x1 convolutions as products": LINEAR,
    "small maps as products": {**LINEAR, "small_maps": "linear"},
    "fused kernels": {**LINEAR, "kernels": "fused"},
    "compiled": {**LINEAR, "execution": "compile"},
}


def each_layer(one: Cell, network: nn.Module, optimizer: torch.optim.Optimizer) -> EachLayer:
    """In place of `step.layers_of`."""
    return EachLayer(network)


def built(name: str, batch_size: int, model: str, search: bool) -> Workbench:
    """The variant, ready and warm."""
    axes = axes_of("tuned", "gpu", cudnn_benchmark=search, **VARIANTS[name])
    with mock.patch.object(step, "layers_of", each_layer if name == EACH else step.layers_of):
        bench = workbench(cell(model=model, batch_size=batch_size, **axes), images())
    ready = bench.train_step.compile_seconds
    measure(bench, 0.1)
    print(f"batch {batch_size}, {name}: ready after {ready:.1f} s", flush=True)
    return bench


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--no-search", action="store_true")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("there is no GPU: a captured step is a GPU's")
    for batch_size in given.batches:
        benches = {name: built(name, batch_size, given.model, not given.no_search) for name in VARIANTS}
        rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
        for repeat in range(given.repeats):
            for name in list(VARIANTS)[:: -1 if repeat % 2 else 1]:
                rates[name].append(measure(benches[name], 0.5).images_per_second or 0.0)
        first = rates[next(iter(VARIANTS))]
        for name, seen in rates.items():
            found = log_mean_interval(in_order([rate / base for rate, base in zip(seen, first, strict=True)]))
            told = f"{found.estimate:.3f}" + (f" ({found.low:.3f} - {found.high:.3f})" if found.low else "")
            print(f"batch {batch_size}, {name}: {median(seen):,.0f} images/s, {told}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
