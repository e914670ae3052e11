"""A trials table as `rresnet.read` gives it, and what is told of it."""

import io
from dataclasses import asdict

import pandas as pd
from rich.console import Console
from samples import make_cell

from rresnet.experiments import printing
from rresnet.tables.measurement import TRIALS


def trials(*cells_and_rates, run_id="r1", hostname="vm", status="ok"):
    """Rows of a trials table: (cell, rates by repeat); a rate of None is a repeat that is missing."""
    rows = []
    for cell, values in cells_and_rates:
        for repeat, rate in enumerate(values):
            if rate is not None:
                rows.append(
                    {
                        **asdict(cell),
                        "cell_id": cell.cell_id,
                        "run_id": run_id,
                        "hostname": hostname,
                        "repeat": repeat,
                        "process": repeat,
                        "status": status,
                        "images_per_second": rate,
                        "epoch_seconds": 10_000 / rate,
                        "epoch_seconds_kind": "projected",
                        "test_accuracy": None,
                    }
                )
    return pd.DataFrame(rows).reindex(columns=[f.name for f in TRIALS])


BLOG = make_cell(batch_size=64)
TUNED = make_cell(batch_size=64, recipe="tuned", precision="bf16", input="resident", channels_last=True)
GPU = make_cell(batch_size=64, device="gpu", precision="tf32")


def printed(table):
    console = Console(width=140, record=True, file=io.StringIO())
    printing.findings(table, console)
    printing.remarks(table, console)
    return console.export_text()


QUIET = [100.0, 101.0, 99.0, 100.5, 99.5, 100.0]


def scaled(factor):
    return [rate * factor for rate in QUIET]


def side(*cells_and_rates, run_id="r1", **columns):
    return trials(*cells_and_rates, run_id=run_id).assign(**{"cpu_model": "A CPU", "cpu_count": 2, **columns})
