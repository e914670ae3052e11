"""The tables for other tools: CSV and JSON."""

import io
import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from rresnet.tables import place
from rresnet.tables.place import StoreError
from rresnet.tables.reading import check_there, read_tables


def table(results: place.Location, name: str) -> pa.Table:
    """One table of a results folder.

    Raises:
        StoreError: there is no such folder, or a file in it can't be used.
    """
    check_there(results)
    return read_tables(results, [name])[name]


def to_csv(rows: pa.Table) -> bytes:
    """The rows as CSV in UTF-8 with a header line: a null is empty, the items of a list are joined by semicolons."""
    for i, column in enumerate(rows.columns):
        if pa.types.is_list(column.type):
            joined: Any = pc.binary_join(column, ";")
            rows = rows.set_column(i, rows.column_names[i], joined)
    out = io.BytesIO()
    csv.write_csv(rows, out)
    return out.getvalue()


def to_json(rows: pa.Table) -> bytes:
    """The rows as a JSON list of objects: times as ISO 8601, and numbers that JSON does not have as null."""
    listed = [{name: _plain(value) for name, value in row.items()} for row in rows.to_pylist()]
    return (json.dumps(listed, indent=1, allow_nan=False) + "\n").encode()


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, following a link; a pipe or a device is written to directly.

    Raises:
        StoreError: it can't be written.
    """
    if not path.name:
        raise StoreError(f"--out {path} names no file: give the name of one, or leave out --out to print")
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        path = Path(os.path.realpath(path)) if path.is_symlink() else path
        place.at(path.parent).write(path.name, content)
    except OSError as error:
        raise StoreError(f"can't write {path}: {error.strerror}; choose another --out") from error


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    return None if isinstance(value, float) and value - value != 0 else value  # NaN and the infinities
