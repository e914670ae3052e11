"""An image folder: one folder a class, perhaps within `train/` and `test/`."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from rresnet.data import DataError, Source, check_memory
from rresnet.data.images import Stop, decode, split

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"})
TRAINING_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")


def load(root: Path, image_size: int, seed: int, stop: Stop) -> Source:
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
    images = decode([(str(path), path) for path in paths], image_size, stop)
    labels = np.array([label for part in parts for _, label in part], dtype=np.int64)
    return split(*images, labels, classes, seed, len(parts[0]) if len(parts) == 2 else None)


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
