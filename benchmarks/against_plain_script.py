"""How fast are the recipes under Ray against the blog's script without Ray? Interleaved, in one run.

    python benchmarks/against_plain_script.py [--repeats 12] [--batches 64 256]       (about 6 minutes on 2 cores)

While the driver has a trial's row in hand the trial process is idle: there the plain script, a process of its own with
as many threads and batches of 64, gets its turn. Targets: the blog recipe within 3 % of the script, the tuned one at
batch 64 at 1.5 times the script, the best cell at 2.2 times and at 65 % of the machine's own matrix rate.
"""

import argparse
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median

import ray
from common import verdict
from rich.console import Console

from rresnet import data, grid, hardware
from rresnet.analysis import statistics
from rresnet.config import How, Settings
from rresnet.progress import Progress
from rresnet.runner import cluster
from rresnet.runner.sweep import Sweep
from rresnet.tables import runs, store

STEPS = 4


def main() -> int:
    """Measure and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--batches", type=int, nargs="*", default=[64, 256], help="of the tuned recipe")
    parser.add_argument("--execution", nargs="*", default=["eager"], help="of the tuned recipe")
    given = parser.parse_args()
    here = hardware.probe()
    blog = grid.cells(Settings(recipe=("blog",), batch_size=(64,)), ["cpu"], here)
    tuned = Settings(recipe=("tuned",), batch_size=tuple(given.batches), execution=tuple(given.execution))
    cells = [*blog, *grid.cells(tuned, ["cpu"], here)]
    planned = grid.plan(cells, repeats=given.repeats, processes=1, seed=42)
    script = [sys.executable, str(Path(__file__).with_name("plain_script.py")), "--threads", str(here.cpu_cores)]
    plain = subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert plain.stdin is not None
    assert plain.stdout is not None
    plain.stdout.readline()
    ratios, shares = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)

    def turn(trial_id: str, rows: store.Rows) -> None:
        assert plain.stdin is not None
        assert plain.stdout is not None
        print(STEPS, file=plain.stdin, flush=True)
        images, seconds = plain.stdout.readline().split()
        (row,) = rows["trials"]
        label = f"{row['recipe']} {row['precision']} {row['execution']} batch {row['batch_size']}"
        ratios[label].append(row["images_per_second"] * float(seconds) / float(images))
        shares[label].append(row["percent_of_limit"])
        print(f"{label}: {row['images_per_second']:.1f} img/s, plain {float(images) / float(seconds):.1f}", flush=True)

    run = runs.Run(run_id="x", experiment="x", name="x", plan_id="x", planned=len(planned), started_at="")
    with cluster.connect(None, here) as found, tempfile.TemporaryFile("w") as nowhere:
        sweep = Sweep(
            run=run,
            cluster=found,
            data=ray.put(data.load("fashion-mnist-12k", image_size=32)),
            how=How(seconds=2.0),
            keep=lambda name, content: None,
            write=turn,
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
        told += f", {share:.0f} % of the matrix rate"
        if label.startswith("blog"):
            missed |= verdict(told, 0.97 <= interval.estimate <= 1.03)
        elif label.endswith(" 64") and "eager" in label:
            missed |= verdict(f"{told} (target 1.5)", interval.estimate >= 1.5)
        else:
            print(told)
    best = max(found_ratios, key=lambda label: found_ratios[label])
    missed |= verdict(f"best, {best}: {found_ratios[best]:.2f} (target 2.2)", found_ratios[best] >= 2.2)
    share = median(shares[best])
    return missed | verdict(f"best, {best}: {share:.0f} % of the matrix rate (target 65)", share >= 65)


if __name__ == "__main__":
    sys.exit(main())
