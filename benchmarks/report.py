"""What does a report cost? Seconds, memory and bytes for synthetic rows.

    python benchmarks/report.py [--most 10000] [--keep DIR]          (about 40 seconds on two cores)

Each size is one run of 100 settings, written as the store writes it and reported by `rresnet report` in a process of
its own. CPU seconds are printed beside elapsed seconds, which other programs lengthen.
Targets: under 6 MB of HTML for 1,000 trials; under 20 s and under 1 GB for 10,000.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import arguments, cell, verdict

from rresnet.cell import Trial
from rresnet.tables.measurement import SCHEMAS

RUN = "20260101T000000000000Z-compare-abcdef"
SIZES = 25
# The peak of its own memory; getrusage would count this process's too, whose image it starts from.
REPORT = "from rresnet.command import main; main(); print(open('/proc/self/status').read())"
RESNET50_FLOPS = 7.6e8  # of a training step for each image of 32 by 32


def rows(trials: int) -> list[dict[str, object]]:
    """Trials of 100 settings (2 devices, 2 recipes, 25 batch sizes) on one machine, with the figures that a run has."""
    random = np.random.default_rng(1)
    found = []
    cells = [
        cell(device=device, recipe=recipe, batch_size=8 * (1 + size), model="resnet50")
        for device in ("cpu", "gpu")
        for recipe in ("blog", "tuned")
        for size in range(SIZES)
    ]
    for number in range(trials):
        one = cells[number % len(cells)]
        planned = Trial(cell=one, repeat=number // len(cells), process=number // len(cells) % 3)
        peak = {"cpu": 200.0, "gpu": 9000.0}[one.device] * {"blog": 0.5, "tuned": 1.0}[one.recipe]
        rate = peak * one.batch_size / (one.batch_size + 30) * float(random.lognormal(0, 0.02))
        start = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number)
        found.append(
            {
                **asdict(one),
                "run_id": RUN,
                "experiment": "compare",
                "trial_id": planned.trial_id,
                "cell_id": one.cell_id,
                "repeat": planned.repeat,
                "process": planned.process,
                "attempt": 1,
                "schema_version": 1,
                "global_batch_size": one.global_batch_size,
                "status": "ok",
                "images_per_second": rate,
                "step_seconds": one.batch_size / rate,
                "epoch_seconds": 10_000 / rate,
                "epoch_seconds_kind": "projected",
                "startup_seconds": float(random.lognormal(-4, 0.5)),
                "warmup_seconds": float(random.lognormal(-2, 0.3)),
                "clocks_seconds": float(random.lognormal(-3, 0.3)),
                "measured_seconds": 1.0,
                "measured_images": round(rate),
                "compute_images_per_second": rate * 1.1,
                "input_images_per_second": rate * (1.3 if one.recipe == "blog" else 40),
                "bottleneck": "input" if one.recipe == "blog" else "compute",
                "percent_of_limit": 100 * rate / peak * 0.4,
                "flops_per_image": RESNET50_FLOPS,
                "canary_matrix_seconds": float(random.lognormal(-4, 0.05)),
                "canary_copy_seconds": float(random.lognormal(-4, 0.05)),
                "peak_memory_bytes": 200_000_000 + 3_000_000 * one.batch_size,
                "energy_joules": float(random.lognormal(4, 0.05)) if one.device == "gpu" else None,
                "observed_threads": one.cpu_threads,
                "first_loss": float(random.lognormal(1, 0.1)),
                "final_loss": float(random.lognormal(0, 0.1)),
                "quality_flags": ["foreign_load"] if random.random() < 0.1 else [],
                "hostname": "a-machine",
                "cpu_model": "A CPU",
                "cpu_count": 8,
                "gpu_name": "A GPU" if one.device == "gpu" else None,
                "torch_version": "2.15.0",
                "environment_fingerprint": "0123456789abcdef",
                "started_at": start,
                "finished_at": start + timedelta(seconds=1.2),
            }
        )
    return found


def write(results: Path, trials: int) -> None:
    """A results folder with so many trials."""
    for name, schema in SCHEMAS.items():
        (results / name).mkdir(parents=True)
        table = pa.Table.from_pylist(rows(trials) if name == "trials" else [], schema=schema)
        pq.write_table(table, results / name / f"{RUN}.parquet")


def measured(results: Path) -> tuple[float, float, float, int]:
    """Seconds, the processor's seconds, peak memory in bytes, and the page's bytes of one report."""
    began, before = time.perf_counter(), os.times().children_user
    told = subprocess.run([sys.executable, "-c", REPORT, "report", str(results)], capture_output=True, check=True)
    seconds, peak_kib = time.perf_counter() - began, int(told.stdout.split(b"VmHWM:")[1].split()[0])
    busy = os.times().children_user - before
    return seconds, busy, peak_kib * 1024.0, (results / "report" / "index.html").stat().st_size


def main() -> int:
    options = arguments(__doc__, most=10_000, keep="")
    missed = 0
    with tempfile.TemporaryDirectory() as place:
        for trials in (size for size in (1_000, 10_000) if size <= options.most):
            results = Path(options.keep or place) / str(trials)
            write(results, trials)
            seconds, busy, memory, size = measured(results)
            times = f"{seconds:.1f} s ({busy:.1f} s of the processor)"
            told = f"{trials} trials: {times}, {memory / 1e6:.0f} MB of memory, {size / 1e6:.1f} MB of HTML"
            fine = seconds < 20 and memory < 1e9 and (size < 6e6 or trials > 1_000)
            missed |= verdict(told, fine)
    return missed


if __name__ == "__main__":
    sys.exit(main())
