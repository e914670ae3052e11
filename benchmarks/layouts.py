"""Which layout, optimizer kernel and kind of convolution, for which precision? Only measuring can tell.

    python benchmarks/layouts.py [--model resnet50] [--repeats 12]          (about 6 minutes on two cores)

Cells of one process take turns. Prints, for each precision and batch size, the ratio of images a second: of NHWC over
NCHW, of Adam's fused kernel over PyTorch's default, and of matrix products over convolutions, for 1x1 convolutions and
for those over small maps. In each ratio the other axes are as in the tuned recipe.
"""

import sys

from common import arguments, cell, run, workbenches

import rresnet
from rresnet.hardware import probe


def main() -> int:
    options = arguments(__doc__, model="resnet50", repeats=12, seconds=0.7)
    precisions = ("fp32", "bf16") if probe().cpu_bf16 else ("fp32",)
    for precision in precisions:
        for batch_size in (64, 256):
            axes = {"model": options.model, "batch_size": batch_size, "precision": precision}
            changes: tuple[dict[str, object], ...] = (
                {},
                {"channels_last": False},
                {"fused_optimizer": False},
                {"pointwise": "conv"},
                {"small_maps": "conv"},
            )
            trials = run(
                workbenches([cell(**axes, **change) for change in changes]),
                repeats=options.repeats,
                seconds=options.seconds,
            )
            for axis, value, reference in (
                ("channels_last", True, False),
                ("fused_optimizer", True, False),
                ("pointwise", "linear", "conv"),
                ("small_maps", "linear", "conv"),
            ):
                (row,) = rresnet.speedup(trials, over=axis, reference=reference).to_dict("records")
                told = f"{precision} batch {batch_size}: {axis} {value} over {reference}"
                print(f"{told} {row['speedup']:.3f} ({row['low']:.3f} - {row['high']:.3f})", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
