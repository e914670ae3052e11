"""Does `rresnet diff` detect a step that was made 15 % longer, and find nothing between two runs of the same code?

    python benchmarks/slowdown.py                (a minute)

A step sleeps 0.2 s, or 0.23 s in the slowed run, and is timed; rows go through the store, but the runner is left out.
Exits with 1 when two equal runs are anything but "not distinguishable", or when the slowed one is not "worse" with exit
code 1 under --fail-on-regression 5%. On a machine where every sleep ends late, the second may be missed.
"""

import contextlib
import io
import json
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from common import cell, verdict

from rresnet import command
from rresnet.cell import Trial
from rresnet.tables.measurement import SCHEMA_VERSION
from rresnet.tables.runs import Run
from rresnet.tables.store import Writer

STEP_SECONDS, STEPS, REPEATS, PROCESSES = 0.2, 3, 12, 3
CELLS = [cell(batch_size=8), cell(batch_size=16)]


def row(trial: Trial, run_id: str, factor: float) -> dict[str, object]:
    """A row of the trials table, of steps that sleep."""
    started = datetime.now(UTC)
    begin = time.perf_counter()
    for _ in range(STEPS):
        time.sleep(STEP_SECONDS * factor)
    seconds, images = time.perf_counter() - begin, STEPS * trial.cell.batch_size
    key = {"run_id": run_id, "trial_id": trial.trial_id, "cell_id": trial.cell.cell_id, "experiment": "slowdown"}
    order = {"repeat": trial.repeat, "process": trial.process, "attempt": 1, "schema_version": SCHEMA_VERSION}
    where = {"hostname": "here", "cpu_model": "a sleeper", "cpu_count": 1}
    found = {"status": "ok", "images_per_second": images / seconds, "epoch_seconds": 10_000 * seconds / images}
    when = {"started_at": started, "finished_at": datetime.now(UTC), "global_batch_size": trial.cell.batch_size}
    return {**key, **order, **asdict(trial.cell), **where, **found, **when}


def measured(folder: Path, factor: float) -> str:
    """A results folder of one run."""
    started = datetime.now(UTC).isoformat()
    run = Run(run_id=folder.name, experiment="slowdown", name="slowdown", plan_id="plan", planned=0, started_at=started)
    with Writer(folder, run) as writer:
        for repeat in range(REPEATS):
            for one in CELLS:
                trial = Trial(cell=one, repeat=repeat, process=repeat * PROCESSES // REPEATS)
                writer.write(trial.trial_id, {"trials": [row(trial, folder.name, factor)]})
    return str(folder)


def diff(a: str, b: str) -> tuple[int, set[str]]:
    """Exit code and verdicts; the table is printed."""
    command.main(["diff", a, b, "--fail-on-regression", "5%"])
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = command.main(["diff", a, b, "--format", "json", "--fail-on-regression", "5%"])
    return code, {change["verdict"] for change in json.loads(out.getvalue())["changes"]}


def main() -> int:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        one, same, slowed = (measured(Path(name), f) for name, f in (("one", 1.0), ("same", 1.0), ("slowed", 1.15)))
        missed = verdict("the same code twice", diff(one, same) == (0, {"not distinguishable"}))
        return missed | verdict("a step made 15 % longer", diff(one, slowed) == (1, {"worse"}))


if __name__ == "__main__":
    sys.exit(main())
