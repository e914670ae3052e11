"""Does `rresnet diff` tell a step that was made 15 % longer, and find nothing between two runs of the same code?

    python benchmarks/slowdown.py                (3 runs of half a minute)

The runs are real ones, through Ray; their trials sleep in the place of training (a step of 50 ms, or 57.5 ms in the
slowed run) and time what they slept. Exits with 1 when a run against its like is anything but "not distinguishable", or
when the slowed one is not "worse" with exit code 1 under --fail-on-regression 5%.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common import verdict
from stub_run import announced, cells

from rresnet import cli, command
from rresnet.config import How, Trial
from rresnet.measurement import Environment, Measurement

FACTOR = "SLOWDOWN_FACTOR"  # set in the runs, absent in the benchmark that starts them
STEP_SECONDS = 0.05


def trial(config: dict[str, Any], how: How, data: object) -> None:
    """In place of `rresnet.trial.run`: steps that sleep."""
    from ray import tune

    planned, started = Trial.from_json(config["trial"]), datetime.now(UTC)
    if not announced:
        announced.append(os.getpid())
        tune.report({"process_id": os.getpid()})
    begin, steps = time.perf_counter(), 0
    while time.perf_counter() - begin < how.seconds:
        time.sleep(STEP_SECONDS * float(os.environ[FACTOR]))
        steps += 1
    seconds, images = time.perf_counter() - begin, steps * planned.cell.batch_size
    found = Measurement(
        status="ok",
        images_per_second=images / seconds,
        measured_images=images,
        measured_seconds=seconds,
        epoch_seconds=10_000 * seconds / images,
        epoch_seconds_kind="projected",
    )
    where = Environment(hostname="stub", cpu_model="a sleeper", cpu_count=1)
    when = {"started_at": started, "finished_at": datetime.now(UTC)}
    record = {"measurement": asdict(found), "windows": [], "epochs": []}
    tune.report({"record": record, "environment": asdict(where), "when": when, "alone": False})


def run(folder: Path, factor: float) -> str:
    flags = ["--repeats", "6", "--seconds", "0.5", "--results-dir", str(folder)]
    done = subprocess.run([sys.executable, __file__, *flags], env={**os.environ, FACTOR: str(factor)}, check=False)
    assert done.returncode == 0, f"the run ended with {done.returncode}"
    return str(folder)


def diff(a: str, b: str) -> tuple[int, list[str]]:
    """Exit code and verdicts; the table is printed."""
    command.main(["diff", a, b])
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = command.main(["diff", a, b, "--format", "json", "--fail-on-regression", "5%"])
    return code, [change["verdict"] for change in json.loads(out.getvalue())["changes"]]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        one, same, slowed = (run(Path(folder) / name, f) for name, f in (("a", 1.0), ("b", 1.0), ("slowed", 1.15)))
        code, found = diff(one, same)
        missed = verdict("the same code twice", code == 0 and set(found) == {"not distinguishable"})
        code, found = diff(one, slowed)
        return missed | verdict("a step made 15 % longer", code == 1 and set(found) == {"worse"})


if __name__ == "__main__":
    sys.exit(cli.main("stub", __doc__ or "", cells=cells, trainable=trial) if FACTOR in os.environ else main())
