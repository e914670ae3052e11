"""Named data sets through torchvision, with its checksums; files that are there already are used."""

import gzip
import hashlib
import math
import os
import shutil
import struct
import tempfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torchvision

from rresnet import scratch
from rresnet.cell import first_line
from rresnet.data import DataError, Pixels, Source, Split

_IDX = {  # file -> its shape
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}
# The first training labels of data sets whose files have the same names and shapes.
_BEGINNINGS = {(5, 0, 4, 1, 9, 2, 1, 3, 1, 4): "MNIST", (9, 0, 0, 3, 0, 2, 7, 2, 5, 5): "FashionMNIST"}


def load(of_class: str, data_dir: Path | None) -> Source:
    """Load the data set of a class of `torchvision.datasets` from `data_dir`, downloading what is not there.

    Args:
        of_class: MNIST or CIFAR10, or a class derived from one of them.
        data_dir: where its files are, or are downloaded to; by default rresnet/data in the user's cache folder.

    Raises:
        DataError: files are damaged, or another data set's, or can't be downloaded.
    """
    dataset = getattr(torchvision.datasets, of_class)
    # A shell does not expand ~ behind --data-dir=; no error where there is no such user.
    folder = Path(os.path.expanduser(data_dir)) if data_dir else scratch.cache_folder() / "data"
    return (_idx if issubclass(dataset, torchvision.datasets.MNIST) else _cifar)(dataset, folder)


def _idx(dataset: Any, folder: Path) -> Source:
    paths = _idx_files(folder, dataset.__name__)
    if not paths:
        _download(dataset, folder)
        paths = _idx_files(folder, dataset.__name__)
    contents = [_read_idx(path, shape) for path, shape in zip(paths, _IDX.values(), strict=True)]
    whose = _BEGINNINGS.get(tuple(contents[1][:10].tolist()), dataset.__name__)
    if whose != dataset.__name__:
        raise DataError(
            f"{paths[1]} is of {whose}, not {dataset.__name__}: give the --dataset or --data-dir that you mean"
        )
    train, test = (_idx_split(paths[i + 1], *contents[i : i + 2]) for i in (0, 2))
    return Source(train=train, test=test, classes=tuple(dataset.classes))


def _idx_files(folder: Path, torchvision_name: str) -> list[Path]:
    """The idx files, in `folder` itself, as Debian has them, or where torchvision puts them; none unless all are there.

    Each may be gzipped.
    """
    for home in (folder, folder / torchvision_name / "raw"):
        either = [(home / name, home / f"{name}.gz") for name in _IDX]
        if all(plain.is_file() or zipped.is_file() for plain, zipped in either):
            return [plain if plain.is_file() else zipped for plain, zipped in either]
    return []


def _idx_split(path: Path, images: Pixels, labels: Pixels) -> Split:
    if labels.max() > 9:
        raise DataError(f"{path}: label {labels.max()}: expected 0 to 9; get the file again")
    return Split(images=images[:, None], labels=labels.astype(np.int64))


def _read_idx(path: Path, expected: tuple[int, ...]) -> Pixels:
    """An idx file of bytes (yann.lecun.com/exdb/mnist): 0, 0, type 8, dimensions, each size, then the values."""
    header = struct.pack(">HBB", 0, 8, len(expected)) + struct.pack(f">{len(expected)}I", *expected)
    length = len(header) + math.prod(expected)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(length + 1)  # no more: a small archive may hold any number of bytes
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}): get it again") from error
    if not content.startswith(header) or len(content) != length:
        found = f"{len(content)}" if len(content) <= length else "more"
        raise DataError(
            f"{path} is not the expected idx file of {' x '.join(map(str, expected))} bytes "
            f"({found} bytes found, {length} with its header expected): get it again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=len(header)).reshape(expected)


def _cifar(dataset: Any, folder: Path) -> Source:
    name, md5 = dataset.filename, dataset.tgz_md5
    archive = folder / name
    if not (folder / dataset.base_folder).is_dir() and archive.is_file():
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
        if digest != md5:  # its batches are pickles: nothing is opened that is not the known file
            raise DataError(
                f"{archive} is not {dataset.__name__}'s archive (md5 {digest}, expected {md5}): get it again"
            )
    if not (folder / dataset.base_folder).is_dir():
        _download(dataset, folder)
    try:  # torchvision checks each batch's md5 before it unpickles one
        parts = [dataset(str(folder), train=train, download=False) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"{folder / dataset.base_folder} is damaged ({error}): "
            f"remove it, and put {name} from {dataset.url} into {folder}"
        ) from error
    splits = [
        Split(images=p.data.transpose(0, 3, 1, 2).copy(), labels=np.asarray(p.targets, dtype=np.int64)) for p in parts
    ]
    return Source(train=splits[0], test=splits[1], classes=tuple(parts[0].classes))


def _download(dataset: Any, folder: Path) -> None:
    """Let torchvision download into a temporary folder, then move: a download that breaks off leaves nothing behind."""
    by_hand = _by_hand(dataset, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
            archive = folder / getattr(dataset, "filename", "")
            if archive.is_file():
                shutil.copy(archive, temporary)
            dataset(temporary, download=True)
            for entry in Path(temporary).iterdir():
                if entry.is_dir():
                    shutil.rmtree(folder / entry.name, ignore_errors=True)
                    entry.rename(folder / entry.name)
    except (OSError, RuntimeError) as error:
        reason = first_line(error)
        raise DataError(f"can't download {dataset.__name__} ({reason}): {by_hand}") from error


def _by_hand(dataset: Any, folder: Path) -> str:
    if issubclass(dataset, torchvision.datasets.CIFAR10):
        return f"get {dataset.url} by hand and put it into {folder} (--data-dir names another folder)"
    files, mirror = ", ".join(file for file, _ in dataset.resources), dataset.mirrors[0]
    return f"get {files} from {mirror} by hand and put them into {folder} (--data-dir names another folder)"
