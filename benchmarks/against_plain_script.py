"""Does the blog recipe under Ray train as fast as the blog's script without Ray? Interleaved, in one run.

While the driver has a trial's row in hand the trial process is idle: there the plain script, a process of its own with
as many threads, gets its turn. Prints the ratio (rresnet / plain) and its interval; exits 1 outside 0.97 - 1.03.

Use: python benchmarks/against_plain_script.py [--repeats 16]        (about 3 minutes on 2 cores)
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import ray
from rich.console import Console

from rresnet import cluster, data, grid, hardware, statistics, store
from rresnet.config import How, Settings
from rresnet.progress import Progress
from rresnet.sweep import Sweep

BATCH_SIZE, STEPS, LOW, HIGH = 64, 4, 0.97, 1.03


def main() -> int:
    """Measure and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=16)
    repeats = parser.parse_args().repeats
    here = hardware.probe()
    settings = Settings(recipe=("blog",), batch_size=(BATCH_SIZE,), repeats=repeats)
    planned = grid.plan(grid.cells(settings, ["cpu"], here), repeats=repeats, processes=1, seed=42)
    script = [sys.executable, str(Path(__file__).with_name("plain_script.py")), "--threads", str(here.cpu_cores)]
    plain = subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert plain.stdin is not None
    assert plain.stdout is not None
    plain.stdout.readline()
    ratios: list[float] = []

    def turn(trial_id: str, rows: store.Rows) -> None:
        assert plain.stdin is not None
        assert plain.stdout is not None
        print(STEPS, file=plain.stdin, flush=True)
        images, seconds = plain.stdout.readline().split()
        under_ray = rows["trials"][0]["images_per_second"]
        ratios.append(under_ray * float(seconds) / float(images))
        print(f"rresnet {under_ray:.1f} img/s  plain {float(images) / float(seconds):.1f} img/s  {ratios[-1]:.3f}")

    run = store.Run(run_id="x", experiment="x", name="x", plan_id="x", planned=repeats, started_at="")
    with cluster.connect(None, here) as found, tempfile.TemporaryFile("w") as nowhere:
        sweep = Sweep(
            run=run,
            cluster=found,
            data=ray.put(data.load("fashion-mnist-12k", image_size=32)),
            how=How(seconds=2.0, timeout_seconds=600),
            write=turn,
            progress=Progress(Console(file=nowhere), repeats),
        )
        sweep.execute(planned)
    plain.stdin.close()
    plain.wait()
    # The first pair of a process still warms up its neighbour's memory; the work is the same, so no ratio drift.
    kept = ratios[1:]
    interval = statistics.log_mean_interval(kept, range(len(kept)), [0] * len(kept), drift_limit=0)
    print(f"ratio rresnet / plain script: {interval.estimate:.3f} ({interval.low:.3f} - {interval.high:.3f})")
    return 0 if LOW <= interval.estimate <= HIGH else 1


if __name__ == "__main__":
    sys.exit(main())
