"""How fast are the recipes under Ray against the blog's script without Ray? Interleaved, in one run.

    python benchmarks/against_plain_script.py [--repeats 12] [--batches 64 256] [--device cpu]
                                                                                (about 6 minutes on 2 cores)

The plain script is a process of its own, with as many threads and batches of 64. It gets its turn while the driver
handles a trial's row, when the trial process is idle. Targets: the blog recipe within 3 % of the script; on a CPU the
tuned recipe at batch 64 at 1.5 times the script, and the best cell at 2.2 times the script and at 65 % of the machine's
own matrix rate; on a GPU of the H100's class the tuned recipe at batch 64 at 6 times the script, and the best cell at
120,000 images/s.
"""

import argparse
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import ray
from common import verdict
from rich.console import Console

from rresnet import data, grid, hardware
from rresnet.analysis import statistics
from rresnet.cell import DEVICES
from rresnet.config import How, Settings
from rresnet.progress import Progress
from rresnet.runner import cluster
from rresnet.runner.sweep import Sweep
from rresnet.tables import runs, store

STEPS = {"cpu": 4, "gpu": 20}  # of the script, in its turn
TUNED_TARGET = {"cpu": 1.5, "gpu": 6.0}  # times the script, at batch 64
BEST_TARGET = 2.2  # of a CPU, times the script
SHARE_TARGET = 65  # of a CPU, percent of its matrix rate
RATE_TARGET = 120_000  # of a GPU, images/s


def main() -> int:
    """Measure and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--batches", type=int, nargs="*", default=[64, 256], help="of the tuned recipe")
    parser.add_argument("--execution", nargs="*", default=[], help="of the tuned recipe, instead of its own")
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    given = parser.parse_args()
    here, device = hardware.probe(), given.device
    blog = grid.cells(Settings(recipe=("blog",), batch_size=(64,)), [device], here)
    tuned = Settings(recipe=("tuned",), batch_size=tuple(given.batches), execution=tuple(given.execution))
    cells = [*blog, *grid.cells(tuned, [device], here)]
    planned = grid.plan(cells, repeats=given.repeats, processes=1, seed=42)
    script = [sys.executable, str(Path(__file__).with_name("plain_script.py")), "--threads", str(here.cpu_cores)]
    script += ["--device", "cuda"] if device == "gpu" else []
    plain = subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert plain.stdin is not None
    assert plain.stdout is not None
    plain.stdout.readline()
    ratios, shares, rates = (defaultdict[str, list[float]](list) for _ in range(3))

    def turn(trial_id: str, rows: store.Rows) -> None:
        assert plain.stdin is not None
        assert plain.stdout is not None
        print(STEPS[device], file=plain.stdin, flush=True)
        images, seconds = plain.stdout.readline().split()
        (row,) = rows["trials"]
        label = f"{row['recipe']} {row['precision']} {row['execution']} batch {row['batch_size']}"
        ratios[label].append(row["images_per_second"] * float(seconds) / float(images))
        shares[label].append(row["percent_of_limit"])
        rates[label].append(row["images_per_second"])
        print(f"{label}: {row['images_per_second']:.1f} img/s, plain {float(images) / float(seconds):.1f}", flush=True)

    run = runs.Run(run_id="x", experiment="x", name="x", plan_id="x", planned=len(planned), started_at="")
    with cluster.connect(None, here) as found, tempfile.TemporaryFile("w") as nowhere:
        sweep = Sweep(
            machines=found,
            data=ray.put(data.load("fashion-mnist-12k", image_size=32)),
            how=How(seconds=2.0),
            writer=SimpleNamespace(run=run, write=turn, keep=lambda name, content: None),
            progress=Progress(Console(file=nowhere), len(planned)),
        )
        sweep.execute(planned)
    plain.stdin.close()
    plain.wait()
    missed, found_ratios = 0, dict[str, float]()
    for label, of_cell in ratios.items():
        kept = of_cell[1:]  # the first visit of a process still warms up its neighbour's memory
        drift = 0.0 if label.startswith("blog") else statistics.DRIFT_LIMIT  # the same work has no drift of its ratio
        interval = statistics.log_mean_interval(statistics.in_order(kept), drift_limit=drift)
        found_ratios[label] = interval.estimate
        share = median(shares[label])
        told = f"{label} over the plain script: {interval.estimate:.3f} ({interval.low:.3f} - {interval.high:.3f})"
        told += f", {share:.0f} % of the matrix rate, median {median(rates[label]):,.0f} images/s"
        if label.startswith("blog"):
            missed |= verdict(told, 0.97 <= interval.estimate <= 1.03)
        elif label.endswith(" 64"):
            target = TUNED_TARGET[device]
            missed |= verdict(f"{told} (target {target})", interval.estimate >= target)
        else:
            print(told)
    best = max(found_ratios, key=lambda label: found_ratios[label])
    if device == "gpu":
        rate = median(rates[best])
        return missed | verdict(f"best, {best}: {rate:,.0f} images/s (target {RATE_TARGET:,})", rate >= RATE_TARGET)
    told = f"best, {best}: {found_ratios[best]:.2f} (target {BEST_TARGET})"
    missed |= verdict(told, found_ratios[best] >= BEST_TARGET)
    share = median(shares[best])
    told = f"best, {best}: {share:.0f} % of the matrix rate (target {SHARE_TARGET})"
    return missed | verdict(told, share >= SHARE_TARGET)


if __name__ == "__main__":
    sys.exit(main())
