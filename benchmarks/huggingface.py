"""A data set in the Hugging Face layout, as users bring theirs."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq


def write_parquet(where: Path | IO[bytes], rows: Iterable[tuple[bytes, int, str]], names: Sequence[str]) -> None:
    """Write (encoded image, label, split) rows, with the class names."""
    images, labels, splits = zip(*rows, strict=True)
    features = {"label": {"names": list(names), "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    table = pa.table(
        {
            "image": pa.array(
                [{"bytes": b, "path": None} for b in images], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            ),
            "label": pa.array(labels, pa.int64()),
            "split": pa.array(splits, pa.string()),
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, where, compression="none")  # PNG is compressed already
