"""Rebuild rresnet/data/datasets/fashion-mnist-12k.parquet from the full Fashion-MNIST.

Takes 1,000 training and 200 test images of each class, chosen by a fixed seed; the same input gives the same bytes.

Use: python tools/build_fashion_mnist_12k.py /usr/share/datasets/fashion-mnist   (Debian: dataset-fashion-mnist)
"""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from rresnet.data import Split
from rresnet.data.files import write_parquet
from rresnet.data.named import load

TARGET = Path(__file__).parent.parent / "rresnet" / "data" / "datasets" / "fashion-mnist-12k.parquet"
SEED = 12_000


def chosen(split: Split, each: int) -> Iterator[tuple[bytes, int]]:
    """`each` images of every class as PNG, in shuffled order."""
    random = np.random.default_rng(SEED)
    picks = [random.choice(np.flatnonzero(split.labels == label), each, replace=False) for label in range(10)]
    for index in random.permutation(np.concatenate(picks)):
        png = io.BytesIO()
        Image.fromarray(split.images[index, 0]).save(png, "PNG", optimize=True)
        yield png.getvalue(), int(split.labels[index])


def main(source: Path) -> None:
    """Read the full set and write the file."""
    full = load("fashion-mnist", source)
    rows = [(*row, "train") for row in chosen(full.train, 1000)] + [(*row, "test") for row in chosen(full.test, 200)]
    write_parquet(TARGET, rows, full.classes)
    print(f"{TARGET}: {len(rows)} images, {TARGET.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
