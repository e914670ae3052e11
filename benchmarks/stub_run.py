"""The runner without the training: each trial sleeps for --seconds and reports a rate that follows from its id.

    python benchmarks/stub_run.py --repeats 3 --seconds 0.2 --results-dir /tmp/stub

For checks of the runner itself: kills, resuming, ten thousand trials. With STUB_PROCESS_FILE set, the trial process
writes its process id there.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rresnet import cli, grid
from rresnet.cell import Cell, Device
from rresnet.config import How, Settings
from rresnet.hardware import Hardware
from rresnet.tables.measurement import Environment, Measurement, Record, When

announced: list[int] = []  # once in a process, as `rresnet.runner.trial` does
COPIES = int(os.environ.get("STUB_CELLS", "4"))  # cells, apart from each other by their batch size alone


def trial(config: dict[str, Any], how: How, data: object) -> None:
    """In place of `rresnet.runner.trial.run`."""
    from ray import tune

    planned, started = config["trial"], datetime.now(UTC)
    if not announced:
        announced.append(os.getpid())
        tune.report({"process_id": os.getpid()})
    if file := os.environ.get("STUB_PROCESS_FILE"):
        Path(file).write_text(str(os.getpid()))
    time.sleep(how.seconds)
    rate = 100.0 + int(planned.trial_id[:4], 16) % 1000 / 10
    found = Measurement(
        status="ok",
        images_per_second=rate,
        measured_images=round(rate),
        measured_seconds=1.0,
        epoch_seconds=10_000 / rate,
        epoch_seconds_kind="projected",
    )
    when = When(started_at=started, finished_at=datetime.now(UTC))
    record = Record(measurement=found, environment=Environment(hostname=_host()), when=when)
    tune.report({"outcome": (record, False), "done": True})


def _host() -> str:
    """One name for all, or with STUB_NODES the node's: simulated nodes are all on one machine."""
    import ray

    return str(ray.get_runtime_context().get_node_id()) if "STUB_NODES" in os.environ else "stub"


def cells(settings: Settings, devices: Sequence[Device], hardware: Hardware) -> list[Cell]:
    """As many cells as were asked for, in the settings' place."""
    (one, *_) = grid.cells(settings, devices, hardware)
    return [replace(one, batch_size=1 + number) for number in range(COPIES)]


if __name__ == "__main__":
    sys.exit(cli.main("stub", __doc__ or "", cells=cells, trainable=trial))
