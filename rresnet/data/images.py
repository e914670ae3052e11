"""Encoded images, one by one: decoded to arrays of one size, and split for training and testing."""

import contextlib
import statistics
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from rresnet.data import DataError, Labels, Pixels, Source, Split

# Pillow knows many more formats, chosen by content whatever the file is called; one of them starts Ghostscript.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAXIMUM_PIXELS = 50_000_000  # 150 MB decoded; Pillow's own limit warns at 89 million
LARGE_PIXELS = 4_000_000  # larger images are decoded one at a time: a folder of them needs no more memory than one
_LARGE = threading.Lock()
MOST_TOLD = 10  # of the images that can't be read
_GREY_MODES = frozenset({"1", "L", "I", "I;16", "I;16B", "I;16L", "F", "LA"})
Stop = Callable[[], bool]
Encoded = tuple[str, Path | IO[bytes]]  # what an image is called, and where it is


def decode(sources: Sequence[Encoded], size: int, stop: Stop) -> tuple[Pixels, int]:
    """Decode to uint8 [N, C, size, size], one channel if every image is grey, and the median of their short sides.

    Pillow decodes outside Python's lock.
    """

    def decoded(source: Encoded) -> tuple[Image.Image, int] | DataError:
        if stop():
            raise KeyboardInterrupt
        try:
            return _decode_one(*source, size)
        except DataError as error:
            return error

    good, bad = list[tuple[Image.Image, int]](), list[DataError]()
    with ThreadPoolExecutor() as pool:
        for found in pool.map(decoded, sources):
            if isinstance(found, DataError):
                bad.append(found)
            else:
                good.append(found)
            if len(bad) == MOST_TOLD:
                break
    if bad:
        raise DataError("; ".join(map(str, bad)) + ("; there may be more" if len(bad) == MOST_TOLD else ""))
    images, short_sides = zip(*good, strict=True)
    if all(image.mode == "L" for image in images):
        pixels = np.stack([np.asarray(image)[None] for image in images])
    else:
        pixels = np.stack([np.asarray(image.convert("RGB")).transpose(2, 0, 1) for image in images])
    return pixels, statistics.median_low(short_sides)


def split(
    images: Pixels, short_side: int, labels: Labels, classes: Sequence[str], seed: int, train: int | None
) -> Source:
    """Images and labels as a source: the first `train` are for training or, if that is None, what the seed chooses."""
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


def stratified_test_split(labels: Labels, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of a training and a test part: a sixth of each class for testing, at least one image of two or more."""
    random = np.random.default_rng(seed)
    test: list[NDArray[np.intp]] = []
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        test.append(members[: max(len(members) // 6, min(1, len(members) - 1))])
    chosen = np.sort(np.concatenate(test)) if test else np.empty(0, dtype=np.intp)
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


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
