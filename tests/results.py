"""Results folders made by hand, as the store writes them."""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
from samples import make_cell

from rresnet.cell import Trial
from rresnet.tables.measurement import SCHEMAS

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
BLOG = {"batch_size": 64}
TUNED = {"batch_size": 64, "recipe": "tuned", "input": "resident", "channels_last": True}


def trial(cell, repeat, rate, *, run_id="r1", hostname="vm", start=START, **changes):
    """A row of the trials table; one that failed where the rate is None."""
    ok = rate is not None
    row = {
        **asdict(cell),
        "run_id": run_id,
        "experiment": "compare",
        "trial_id": Trial(cell=cell, repeat=repeat, process=0).trial_id,
        "cell_id": cell.cell_id,
        "repeat": repeat,
        "process": repeat,
        "attempt": 1,
        "schema_version": 1,
        "status": "ok" if ok else "error",
        "error_message": None if ok else "out of luck",
        "images_per_second": rate,
        "epoch_seconds": 10_000 / rate if ok else None,
        "epoch_seconds_kind": "projected" if ok else None,
        "measured_images": 100 if ok else None,
        "measured_seconds": 1.0 if ok else None,
        "warmup_seconds": 3.0 if ok else None,
        "peak_memory_bytes": 3 * 2**20 if ok else None,
        "quality_flags": [] if ok else None,
        "hostname": hostname,
        "started_at": start + timedelta(seconds=repeat),
    }
    return row | changes


def trials(*cells_and_rates, **changes):
    """Rows of (a cell's changes, its rates by repeat)."""
    return [
        trial(make_cell(**cell), repeat, rate, **changes)
        for cell, rates in cells_and_rates
        for repeat, rate in enumerate(rates)
    ]


def write(folder, rows, epochs=(), name="r1"):
    """The folder with these rows in its tables."""
    for table, schema in SCHEMAS.items():
        (folder / table).mkdir(parents=True, exist_ok=True)
        of_table = {"trials": rows, "epochs": epochs}.get(table, ())
        pq.write_table(pa.Table.from_pylist(list(of_table), schema=schema), folder / table / f"{name}.parquet")
    return folder


def epochs(rows, accuracies, seconds=10.0):
    """Epochs of trials that became so accurate."""
    return [
        {
            "run_id": row["run_id"],
            "trial_id": row["trial_id"],
            "epoch": epoch,
            "seconds": seconds,
            "images": 1000,
            "train_loss": 1.0,
            "test_accuracy": accuracy,
            "evaluation_seconds": 2.0,
        }
        for row in rows
        for epoch, accuracy in enumerate(accuracies)
    ]
