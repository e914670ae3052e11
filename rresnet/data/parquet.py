"""A Parquet file in the Hugging Face layout: a column of encoded images, one of labels, and perhaps one of splits."""

import io
import json
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rresnet.cell import first_line
from rresnet.data import DataError, Labels, Source, check_memory
from rresnet.data.images import Stop, decode, split

ROWS_AT_ONCE = 256  # of a file: a few bytes of it can stand for any number of large values


def load(path: Path, image_size: int, seed: int, stop: Stop) -> Source:
    """Load a file with `image` or `img` (a struct with `bytes`, or binary), `label`, and perhaps `split`."""
    table = _read(path)
    encoded = _image_bytes(path, table)
    labels, classes = _labels(path, table)
    test = None
    if "split" in table.column_names:
        is_test = np.array([str(s).lower().startswith(("test", "val")) for s in table["split"].to_pylist()])
        order = np.argsort(is_test, kind="stable")
        encoded, labels, test = [encoded[i] for i in order], labels[order], int((~is_test).sum())
        if test in (0, len(labels)):
            raise DataError(f"{path}: the column split must name both train and test rows, found only one of them")
    check_memory(str(path), len(encoded), 3, image_size)
    named = [(f"{path}, image {i}", io.BytesIO(content)) for i, content in enumerate(encoded)]
    images = decode(named, image_size, stop)
    return split(*images, labels, classes, seed, test)


def _read(path: Path) -> pa.Table:
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        image = next((name for name in ("image", "img") if name in names), None)
        if image is None or "label" not in names:
            raise DataError(
                f"{path} has the columns {', '.join(names) or 'none'}: "
                "expected image (or img) with encoded image bytes, and label with integers"
            )
        wanted = [image, "label", *(["split"] if "split" in names else [])]
        if twice := [name for name in wanted if names.count(name) > 1]:
            raise DataError(f"{path} has the column {twice[0]} more than once: remove or rename the others")
        table = _read_within_memory(path, file, wanted).rename_columns(["image", *wanted[1:]])
        table.validate(full=True)  # text that is no UTF-8, say
    except (pa.ArrowException, OSError, UnicodeError) as error:
        reason = first_line(error)
        raise DataError(
            f"{path} is not a readable Parquet file ({reason}): give a .parquet file or an image folder"
        ) from error
    if not table.num_rows:
        raise DataError(f"{path} has no rows: expected at least two classes of images")
    return table.replace_schema_metadata(file.schema_arrow.metadata)


def _read_within_memory(path: Path, file: pq.ParquetFile, columns: list[str]) -> pa.Table:
    """Read the columns. Raises DataError if they take more than half of the memory that is free."""
    batches, size, available = list[pa.RecordBatch](), 0, psutil.virtual_memory().available
    for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns):
        batches.append(batch)
        size += batch.nbytes
        if size > available // 2:
            raise DataError(
                f"{path} holds more than {available / 2**31:.1f} GiB of images, half of the memory that is free: "
                "give a smaller file"
            )
    schema = batches[0].schema if batches else file.schema_arrow
    return pa.Table.from_batches(batches, schema).select(columns)


def _image_bytes(path: Path, table: pa.Table) -> list[bytes]:
    kind = table.schema.field("image").type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        column = pc.struct_field(table["image"], "bytes")
    else:
        column = table["image"]
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise DataError(
            f"{path}: the image column has type {kind}: expected encoded images, struct<bytes: binary> or binary"
        )
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise DataError(f"{path}: image {row} is missing: remove the row")
    return [bytes(value) for value in column.to_pylist()]


def _labels(path: Path, table: pa.Table) -> tuple[Labels, list[str]]:
    column = table["label"]
    if not pa.types.is_integer(column.type):
        raise DataError(f"{path}: the label column has type {column.type}: expected integers")
    if column.null_count:
        raise DataError(f"{path}: label {column.is_null().to_pylist().index(True)} is missing: remove the row")
    raw = column.to_numpy()
    values, labels = np.unique(raw, return_inverse=True)
    if values[0] < 0:
        raise DataError(
            f"{path}: label {values[0]} is negative: expected 0 and up (-1 often marks an unlabelled test split)"
        )
    names = _class_names(table.schema.metadata)
    if names and values[-1] < len(names):
        return raw.astype(np.int64), names
    return labels.astype(np.int64), [str(value) for value in values]


def _class_names(metadata: dict[bytes, bytes] | None) -> list[str]:
    """Names of a ClassLabel feature, as Hugging Face's datasets writes them into the file."""
    try:
        names = json.loads((metadata or {})[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []
