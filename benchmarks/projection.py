"""Is a projected epoch as long as a trained one?

    python benchmarks/projection.py             (about 4 minutes on two cores)

A visit of 3 s, from which an epoch is projected, and a whole epoch really trained take turns on the same cell. Target:
within 5 %, or the interval holds 1.
"""

import sys

from common import agrees, arguments, cell, measure, workbench, workbenches

from rresnet.training.train import train_epochs


def main() -> int:
    options = arguments(__doc__, repeats=6, seconds=3.0, batch_size=64)
    axes = {"model": "shufflenet_v2_x0_5", "batch_size": options.batch_size, "input": "dataloader", "recipe": "blog"}
    (hot,) = workbenches([cell(**axes)])
    whole = cell(**axes, epochs=1)
    ratios = []
    for _ in range(options.repeats):
        projected = measure(hot, options.seconds).epoch_seconds
        record = train_epochs(workbench(whole), epochs=1, startup_seconds=0.0, progress=lambda images_per_second: None)
        trained = record.measurement.epoch_seconds
        assert projected is not None
        assert trained is not None
        ratios.append(projected / trained)
        print(f"projected {projected:.2f} s, trained {trained:.2f} s", flush=True)
    return agrees("projected over trained", ratios, within=0.05)


if __name__ == "__main__":
    sys.exit(main())
