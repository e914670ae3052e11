"""Is a projected epoch as long as a trained one?

    python benchmarks/projection.py             (about 4 minutes on two cores)

A visit of 3 s, which projects, and a whole epoch really trained take turns on the same cell. Target: within 5 %, or
the interval holds 1.
"""

import sys

import torch
from common import arguments, cell, images, measure, verdict, workbenches

from rresnet.statistics import log_mean_interval
from rresnet.train import train_epochs
from rresnet.workbench import Workbench


def main() -> int:
    options = arguments(__doc__, repeats=6, seconds=3.0, batch_size=64)
    axes = {"model": "shufflenet_v2_x0_5", "batch_size": options.batch_size, "input": "dataloader", "recipe": "blog"}
    (hot,) = workbenches([cell(**axes)])
    whole = cell(**axes, epochs=1)
    ratios = []
    for _ in range(options.repeats):
        projected = measure(hot, options.seconds)["epoch_seconds"]
        bench = Workbench(cell=whole, data=images(), device=torch.device("cpu"))
        record = train_epochs(bench, epochs=1, startup_seconds=0.0, progress=lambda images_per_second: None)
        trained = record.measurement.epoch_seconds
        ratios.append(float(projected) / float(trained or 0))  # type: ignore[arg-type]
        print(f"projected {projected:.2f} s, trained {trained:.2f} s", flush=True)
    found = log_mean_interval(ratios, range(len(ratios)), [0] * len(ratios), drift_limit=0.0)
    assert found.low is not None
    assert found.high is not None
    told = f"projected over trained: {found.estimate:.3f} ({found.low:.3f} - {found.high:.3f})"
    return verdict(told, abs(found.estimate - 1) <= 0.05 or found.low <= 1 <= found.high)


if __name__ == "__main__":
    sys.exit(main())
