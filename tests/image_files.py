"""Data sets of one's own, as files: a folder for each class, or a Parquet file."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def png(array, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def write_folder(root, classes=("cat", "dog"), count=6, mode="RGB", size=(8, 8)):
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new(mode, size, (label * 100 + i,) * 3 if mode == "RGB" else label * 100 + i).save(
                root / name / f"{i}.png"
            )
    return root


def write_parquet(path, images=None, labels=None, image_name="image", metadata=None, **columns):
    images = images if images is not None else [png(np.full((4, 4), i * 10, np.uint8)) for i in range(6)]
    labels = labels if labels is not None else [0, 1] * 3
    images = pa.array([{"bytes": b, "path": None} for b in images]) if not isinstance(images, pa.Array) else images
    table = pa.table({image_name: images, "label": labels, **columns}).replace_schema_metadata(metadata)
    pq.write_table(table, path)
    return path
