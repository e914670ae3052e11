"""Images and labels as arrays: the embedded data set, named ones, and the user's own folder or Parquet file."""

import contextlib
import difflib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

from rresnet.cell import UsageError, nearest

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


class DataError(UsageError):
    """Data that can't be used; the message names the file, what was expected and what to do."""


@dataclass(frozen=True, kw_only=True, eq=False)  # equal only to itself: arrays can't be hashed
class Split:
    """Images and labels: uint8 [N, C, H, W] with one (grey) or three channels, and int64 [N]."""

    images: Pixels
    labels: Labels


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a loader returns: both splits and the class names, by label."""

    train: Split
    test: Split
    classes: tuple[str, ...]
    short_side: int | None = None  # median short side of the user's own images as found, pixels


@dataclass(frozen=True, kw_only=True)
class ImageData(Source):
    """A data set ready to train on; the fingerprint identifies equal data by content."""

    fingerprint: str


Loader = Callable[[Path | None, int, int], Source]  # data folder, image size, seed


def load(
    dataset: str,
    *,
    image_size: int,
    data_dir: Path | None = None,
    seed: int = 42,
    stop: Callable[[], bool] = lambda: False,
) -> ImageData:
    """Load a data set.

    Args:
        dataset: a name in `DATASETS`, an image folder with one folder a class, or a Parquet file.
        image_size: height and width that all images are brought to, pixels.
        data_dir: folder where the files of a named data set lie or are downloaded to.
        seed: for synthetic images, and for the test split of data that has none.
        stop: is asked before each of the user's own images is read, on several threads.

    Raises:
        KeyboardInterrupt: `stop` said so.
        DataError: there is no such data, it is damaged, or it does not fit in memory.
    """
    check_known(dataset)
    loader = DATASETS.get(dataset)
    with _as_data_error(dataset):
        source = loader(data_dir, image_size, seed) if loader else _own(dataset, image_size, seed, stop)
    for split in (source.train, source.test):
        check_memory(dataset, len(split.labels), split.images.shape[1], image_size)
    train, test = _resized(source.train, image_size), _resized(source.test, image_size)
    _check_learnable(dataset, train, test, source.classes)
    return ImageData(**vars(source) | {"train": train, "test": test, "fingerprint": _fingerprint(train, test)})


def _embedded(data_dir: Path | None, image_size: int, seed: int) -> Source:
    """Fashion-MNIST's pixels, packed as they are: decoding 12,000 PNGs would delay each start by seconds."""
    with np.load(Path(__file__).parent / "datasets" / f"{EMBEDDED}.npz") as packed:
        train, test = (Split(images=packed[f"{of}_images"], labels=packed[f"{of}_labels"]) for of in ("train", "test"))
        return Source(train=train, test=test, classes=tuple(map(str, packed["classes"])))


def _synthetic(data_dir: Path | None, image_size: int, seed: int) -> Source:
    """CIFAR-10's shape and size: a colour pattern for each class under noise, so that there is something to learn."""
    random = np.random.default_rng(seed)
    patterns = random.integers(64, 192, (10, 3, 32, 32), dtype=np.uint8)

    def split(count: int) -> Split:
        labels = random.permutation(np.arange(count, dtype=np.int64) % 10)
        noise = random.integers(0, 64, (count, 3, 32, 32), dtype=np.uint8)
        return Split(images=patterns[labels] + noise, labels=labels)

    return Source(train=split(50_000), test=split(10_000), classes=tuple(f"class {i}" for i in range(10)))


def _torchvision(of_class: str, data_dir: Path | None, image_size: int, seed: int) -> Source:
    """Load through a class of `torchvision.datasets` that is MNIST or CIFAR10, or derived from one of them."""
    from rresnet.data import named  # imports torch

    return named.load(of_class, data_dir)


EMBEDDED = "fashion-mnist-12k"
DATASETS: dict[str, Loader] = {
    EMBEDDED: _embedded,
    "fashion-mnist": partial(_torchvision, "FashionMNIST"),
    "mnist": partial(_torchvision, "MNIST"),
    "cifar10": partial(_torchvision, "CIFAR10"),
    "synthetic": _synthetic,
}


MADE_AT = {EMBEDDED: 28, "synthetic": 32}  # data sets of which nothing is read -> height and width as made, pixels


def uses_data_dir(dataset: str) -> bool:
    """Whether it is a name whose files lie in `data_dir`, or are downloaded to it."""
    return dataset in DATASETS and dataset not in MADE_AT


def check_known(dataset: str) -> None:
    """Raise DataError unless it is a known name, a folder or a file; nothing of it is read."""
    path = Path(os.path.expanduser(dataset))  # no error where there is no such user
    with _as_data_error(dataset):  # no right to look there, or too long a name
        if dataset in DATASETS or path.is_dir() or path.is_file():
            return
    beside: list[str] = []
    with contextlib.suppress(OSError):  # a folder that is not there, or may not be read
        close = difflib.get_close_matches(dataset, [str(entry) for entry in path.parent.iterdir()])
        beside = [name for name in close if _may_be_images(Path(name))]
    raise DataError(
        f"--dataset {dataset} is neither a file nor a folder nor a known name: {nearest(dataset, [*DATASETS, *beside])}"
        f"Known names are {', '.join(DATASETS)}; or give an image folder (one folder per class) or a .parquet file"
    )


def _may_be_images(path: Path) -> bool:
    """Whether it is a Parquet file, or a folder whose folders hold images."""
    from rresnet.data import folder

    below = chain(path.glob("*/*"), path.glob("*/*/*"))
    return path.suffix == ".parquet" or any(one.suffix.lower() in folder.SUFFIXES for one in below)


@contextlib.contextmanager
def _as_data_error(dataset: str) -> Iterator[None]:
    """Turn what the system refuses into a DataError."""
    try:
        yield
    except OSError as error:
        what, reason = error.filename or dataset, error.strerror or str(error)
        raise DataError(f"can't read {what}: {reason}; get permission to, or name other data") from error


def _own(dataset: str, image_size: int, seed: int, stop: Callable[[], bool]) -> Source:
    from rresnet.data import folder, parquet

    path = Path(os.path.expanduser(dataset))  # no error where there is no such user
    read = folder.load if path.is_dir() else parquet.load
    return read(path, image_size, seed, stop)


def check_memory(dataset: str, count: int, channels: int, image_size: int) -> None:
    """Raise DataError unless `count` images of that size fit in the memory that is free."""
    needed, available = count * channels * image_size**2, psutil.virtual_memory().available
    if needed > available // 2:  # the training process holds a copy
        raise DataError(
            f"{dataset} at {image_size} x {image_size} pixels needs {needed / 2**30:.1f} GiB twice, "
            f"and {available / 2**30:.1f} GiB is free: lower --image-size"
        )


def _resized(split: Split, size: int) -> Split:
    if split.images.shape[2:] == (size, size):
        return split
    images = np.empty((*split.images.shape[:2], size, size), dtype=np.uint8)
    for target, image in zip(images, split.images, strict=True):
        for channel, pixels in zip(target, image, strict=True):
            channel[:] = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))
    return Split(images=images, labels=split.labels)


def _check_learnable(dataset: str, train: Split, test: Split, classes: Sequence[str]) -> None:
    if len(classes) < 2:
        raise DataError(
            f"{dataset} has {len(classes)} class ({', '.join(classes)}): training a classifier takes at least 2"
        )
    if len(train.labels) < 2 or len(test.labels) < 1:
        raise DataError(
            f"{dataset} has {len(train.labels)} training and {len(test.labels)} test images: "
            "at least 2 and 1 are needed; add images to each class"
        )


def _fingerprint(*splits: Split) -> str:
    digest = hashlib.sha256()
    for split in splits:
        digest.update(str(split.images.shape).encode())
        digest.update(np.ascontiguousarray(split.images).tobytes())
        digest.update(np.ascontiguousarray(split.labels).tobytes())
    return digest.hexdigest()[:16]
