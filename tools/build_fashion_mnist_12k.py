"""Rebuild rresnet/data/datasets/fashion-mnist-12k.npz from the full Fashion-MNIST.

Takes 1,000 training and 200 test images of each class, chosen by a fixed seed; the same input gives the same bytes.

Use: python tools/build_fashion_mnist_12k.py /usr/share/datasets/fashion-mnist   (Debian: dataset-fashion-mnist)
"""

import sys
from pathlib import Path

import numpy as np

from rresnet.data import Split
from rresnet.data.named import load

TARGET = Path(__file__).parent.parent / "rresnet" / "data" / "datasets" / "fashion-mnist-12k.npz"
SEED = 12_000


def chosen(split: Split, each: int) -> Split:
    """`each` images of every class, in shuffled order."""
    random = np.random.default_rng(SEED)
    picks = [random.choice(np.flatnonzero(split.labels == label), each, replace=False) for label in range(10)]
    order = random.permutation(np.concatenate(picks))
    return Split(images=split.images[order], labels=split.labels[order])


def main(source: Path) -> None:
    """Read the full set and write the file."""
    full = load("FashionMNIST", source)
    parts = {"train": chosen(full.train, 1000), "test": chosen(full.test, 200)}
    arrays = {f"{name}_{of}": getattr(part, of) for name, part in parts.items() for of in ("images", "labels")}
    np.savez_compressed(TARGET, classes=np.array(full.classes), **arrays)
    images = sum(len(part.labels) for part in parts.values())
    print(f"{TARGET}: {images} images, {TARGET.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
