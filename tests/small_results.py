"""Results folders whose rows have few columns, for the commands that read them."""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
from samples import make_cell

from rresnet.tables.measurement import SCHEMAS

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
BLOG, TUNED = make_cell(batch_size=8), make_cell(batch_size=8, recipe="tuned")


def row(cell, repeat, rate, **more):
    return {
        **asdict(cell),
        "cell_id": cell.cell_id,
        "trial_id": f"{cell.recipe}{repeat}",
        "run_id": "r1",
        "experiment": "compare",
        "repeat": repeat,
        "process": 0,
        "status": "ok",
        "images_per_second": rate,
        "hostname": "vm",
        "finished_at": START + timedelta(seconds=repeat),
        **more,
    }


def written(folder, rows, epochs=()):
    """A results folder with these rows."""
    for name, content in {"trials": rows, "windows": [], "epochs": epochs, "losses": []}.items():
        (folder / name).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(list(content), schema=SCHEMAS[name]), folder / name / "r1.parquet")
    return folder
