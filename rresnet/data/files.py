"""Images from files: a folder with one folder a class, or a Parquet file in the Hugging Face layout."""

import contextlib
import io
import json
import os
import statistics
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from rresnet.data import DataError, Labels, Pixels, Source, Split, check_memory, stratified_test_split

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"})
TRAINING_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")
# Pillow knows many more formats, chosen by content whatever the file is called; one of them starts Ghostscript.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAXIMUM_PIXELS = 50_000_000  # 150 MB decoded; Pillow's own limit warns at 89 million
LARGE_PIXELS = 4_000_000  # larger images are decoded one at a time: a folder of them needs no more memory than one
_LARGE = threading.Lock()
Stop = Callable[[], bool]
MOST_TOLD = 10  # of the images that can't be read
ROWS_AT_ONCE = 256  # of a Parquet file: a few bytes of it can stand for any number of large values
_GREY_MODES = frozenset({"1", "L", "I", "I;16", "I;16B", "I;16L", "F", "LA"})


def folder(root: Path, image_size: int, seed: int, stop: Stop = lambda: False) -> Source:
    """Load an image folder, split as `train/` and `test/` (or val/, validation/) if it has these, else by the seed."""
    train, test = (_first_folder(root, names) for names in (TRAINING_FOLDERS, TEST_FOLDERS))
    if train and test:
        classes, tested = _class_folders(train), _class_folders(test)
        unknown = [name for name in tested if name not in classes]
        if unknown:
            raise DataError(f"{test} has the class {unknown[0]!r} that {train} lacks: give both the same class folders")
        parts = [_files(train, classes, classes), _files(test, classes, tested)]
    else:
        classes = _class_folders(root)
        _check_is_class(root, train or test)
        parts = [_files(root, classes, classes)]
    paths = [path for part in parts for path, _ in part]
    check_memory(str(root), len(paths), 3, image_size)
    images = _decode([(str(path), path) for path in paths], image_size, stop)
    labels = np.array([label for part in parts for _, label in part], dtype=np.int64)
    return _split(*images, labels, classes, seed, len(parts[0]) if len(parts) == 2 else None)


def _first_folder(root: Path, names: Sequence[str]) -> Path | None:
    """The folder in `root` with the first of the names that is there, in upper or lower case."""
    entries = sorted((entry for entry in os.scandir(root) if entry.is_dir()), key=lambda entry: entry.name)
    there = {entry.name.lower(): Path(entry) for entry in entries}  # `train` goes before `Train`
    return next((there[name] for name in names if name in there), None)


def _class_folders(root: Path) -> list[str]:
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(
            f"{root} has no class folders: expected one folder per class with images in it, {root}/CLASS/*.png"
            f"{_parquet_below(root)}"
        )
    return names


def _check_is_class(root: Path, split: Path | None) -> None:
    """Raise DataError if `train/`, say, has folders and no images of its own: it is no class, but one of two splits."""
    _, folders, files = next(os.walk(split, onerror=_raise)) if split else ("", [], [])
    if split and folders and not any(_images_in(split, files)):
        raise DataError(
            f"{root} has {split.name}/ with folders in it, but not both of train/ and test/ (or val/, validation/): "
            f"rename the other, or give {split} alone, of which a sixth is then kept for testing"
        )


def _parquet_below(folder: Path) -> str:
    there = any(folder.rglob("*.parquet"))
    return "; of several Parquet files, give one: --dataset FOLDER/FILE.parquet" if there else ""


def _images_below(folder: Path) -> Iterator[Path]:
    """The image files in a folder and those below it, also linked ones; hidden files and folders are left out.

    Raises OSError if one of the folders can't be read.
    """
    real = Path(os.path.realpath(folder))
    seen = {real, *real.parents}  # a link may lead back to where the walk has been, or above all of it
    for path, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        leads = {name: Path(os.path.realpath(os.path.join(path, name))) for name in folders if name[0] != "."}
        once = {to: name for name, to in sorted(leads.items(), reverse=True) if to not in seen}
        seen.update(once)
        folders[:] = once.values()
        yield from _images_in(Path(path), files)


def _images_in(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    paths = (folder / name for name in names if name[0] != ".")  # such as macOS's ._1.png, which is no image
    return (path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file())


def _raise(error: OSError) -> None:
    raise error


def _files(root: Path, classes: Sequence[str], names: Sequence[str]) -> list[tuple[Path, int]]:
    """The image files in the folders `names`, each with its class's place in `classes`."""
    found = []
    for name in names:
        files = sorted(_images_below(root / name))
        if not files:
            raise DataError(
                f"{root / name} has no images: expected files ending in {', '.join(sorted(SUFFIXES))}; "
                f"remove the folder or fill it{_parquet_below(root / name)}"
            )
        found += [(path, classes.index(name)) for path in files]
    return found


def parquet(path: Path, image_size: int, seed: int, stop: Stop = lambda: False) -> Source:
    """Load a Parquet file with `image` or `img` (a struct with `bytes`, or binary), `label`, and perhaps `split`."""
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
    images = _decode(named, image_size, stop)
    return _split(*images, labels, classes, seed, test)


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
        reason = str(error).splitlines()[0]
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


def _split(
    images: Pixels, short_side: int, labels: Labels, classes: Sequence[str], seed: int, train: int | None
) -> Source:
    if train is None:
        train_part, test_part = stratified_test_split(labels, seed)
    else:
        train_part, test_part = np.arange(train), np.arange(train, len(labels))
    return Source(
        train=Split(images=images[train_part], labels=labels[train_part]),
        test=Split(images=images[test_part], labels=labels[test_part]),
        classes=tuple(classes),
        short_side=short_side,
    )


def _decode(
    sources: Sequence[tuple[str, Path | IO[bytes]]], size: int, stop: Stop = lambda: False
) -> tuple[Pixels, int]:
    """Decode to uint8 [N, C, size, size], one channel if every image is grey, and the median of their short sides.

    Pillow decodes outside Python's lock.
    """

    def decode(source: tuple[str, Path | IO[bytes]]) -> tuple[Image.Image, int] | DataError:
        if stop():
            raise KeyboardInterrupt
        try:
            return _decode_one(*source, size)
        except DataError as error:
            return error

    good, bad = list[tuple[Image.Image, int]](), list[DataError]()
    with ThreadPoolExecutor() as pool:
        for found in pool.map(decode, sources):
            if isinstance(found, DataError):
                bad.append(found)
            else:
                good.append(found)
            if len(bad) == MOST_TOLD:
                break
    if bad:
        raise DataError("; ".join(map(str, bad)) + ("; there may be more" if len(bad) == MOST_TOLD else ""))
    decoded, short_sides = zip(*good, strict=True)
    if all(image.mode == "L" for image in decoded):
        pixels = np.stack([np.asarray(image)[None] for image in decoded])
    else:
        pixels = np.stack([np.asarray(image.convert("RGB")).transpose(2, 0, 1) for image in decoded])
    return pixels, statistics.median_low(short_sides)


def _decode_one(name: str, source: Path | IO[bytes], size: int) -> tuple[Image.Image, int]:
    """Decode the first frame to 8 bits a channel; return it and the length that its short side had.

    The short side is brought to `size`, and the centre is cut out.
    """
    try:
        with Image.open(source, formats=_FORMATS) as opened:
            pixels = opened.width * opened.height
            if pixels > MAXIMUM_PIXELS:
                raise Image.DecompressionBombError(f"{opened.width} x {opened.height} pixels")
            with _LARGE if pixels > LARGE_PIXELS else contextlib.nullcontext():
                image = _eight_bits(opened)
        if image.size == (size, size):
            return image, size
        return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR), min(image.size)
    except Image.DecompressionBombError as error:
        raise DataError(f"{name} is too large an image to open safely ({error}): scale it down or remove it") from error
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead them to
        raise DataError(f"{name} is not a readable image ({error}): repair or remove it") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float32)
        values *= 255.0 / _white(image.mode, values.max(initial=0))
        return Image.fromarray(values.clip(0, 255, out=values).astype(np.uint8))
    return image.convert("L" if image.mode in _GREY_MODES else "RGB")


def _white(mode: str, most: float) -> float:
    """The value of white. Numbers of 32 bits do not tell it: then it follows from the largest there is."""
    if mode.startswith("I;16") or most > 255:
        return 65535.0
    return 1.0 if mode == "F" and most <= 1 else 255.0
