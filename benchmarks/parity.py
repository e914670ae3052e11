"""Do all recipes and modes learn the same? Losses of the same steps, and test accuracy after the same epochs.

    python benchmarks/parity.py [--model resnet50] [--steps 200] [--epochs 3]          (about 20 minutes on two cores)

From one seed, 200 steps of `tuned` in fp32 beside `blog`: rounding differs (another layout, another optimizer kernel)
and training amplifies it, so the mean loss of the steps is judged (1e-3 relative), and some steps' own differences are
printed. Then whole epochs of fashion-mnist-12k: accuracies within 2 points of each other.
"""

import statistics
import sys

import torch
from common import arguments, cell, images, verdict

from rresnet.config import Cell
from rresnet.hardware import probe
from rresnet.train import train_epochs
from rresnet.workbench import Workbench

AXES: dict[str, dict[str, object]] = {
    "blog fp32 eager": {
        "recipe": "blog",
        "input": "dataloader",
        "channels_last": False,
        "fused_optimizer": False,
        "pointwise": "conv",
        "small_maps": "conv",
    },
    "tuned fp32 eager": {},
    "tuned bf16 eager": {"precision": "bf16"},
    "tuned bf16 compile": {"precision": "bf16", "execution": "compile"},
}


def workbench(one: Cell) -> Workbench:
    return Workbench(cell=one, data=images(), device=torch.device("cpu"))


def main() -> int:
    options = arguments(__doc__, model="resnet50", batch_size=64, steps=200, epochs=3)
    axes = {"model": options.model, "batch_size": options.batch_size}
    blog, tuned = (workbench(cell(**axes, **AXES[name])) for name in ("blog fp32 eager", "tuned fp32 eager"))
    losses = []
    for step in range(options.steps):
        one, other = (bench.take_step(next(bench.batches)).item() for bench in (blog, tuned))
        losses.append((one, other))
        if step + 1 in (1, 10, 50, 100, options.steps):
            print(f"step {step + 1}: blog {one:.5f}, tuned {other:.5f}, {abs(other / one - 1):.1e} apart", flush=True)
    means = [statistics.fmean(side) for side in zip(*losses, strict=True)]
    apart = abs(means[1] / means[0] - 1)
    told = f"mean loss of {options.steps} steps: blog {means[0]:.5f}, tuned fp32 {means[1]:.5f}, {apart:.1e} apart"
    missed = verdict(told, apart <= 1e-3)
    del blog, tuned
    accuracies = {}
    for name, changes in AXES.items():
        if "bf16" in name and not probe().cpu_bf16:
            print(f"{name}: not measured, this processor has no bfloat16")
            continue
        bench = workbench(cell(**axes, **changes))
        record = train_epochs(bench, epochs=options.epochs, startup_seconds=0.0, progress=lambda rate: None)
        accuracies[name] = record.measurement.test_accuracy or 0.0
        told = ", ".join(f"{epoch.test_accuracy:.4f}" for epoch in record.epochs)
        print(f"{name}: test accuracy after each epoch {told}", flush=True)
    spread = max(accuracies.values()) - min(accuracies.values())
    return missed | verdict(
        f"accuracies after {options.epochs} epochs lie {100 * spread:.2f} points apart", spread <= 0.02
    )


if __name__ == "__main__":
    sys.exit(main())
