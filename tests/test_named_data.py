"""Data sets by name: their files, whole and damaged, and those that are foreign."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile

import numpy as np
import pytest
from test_data import load

from rresnet import data
from rresnet.data import DataError, named

FULL = data.Path("/usr/share/datasets/fashion-mnist")


def idx(array):
    return struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def idx_files(folder, compress=True, **replaced):
    """The four files of a data set like MNIST, with 20 and 10 images."""
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("train", 20), ("t10k", 10)):
        arrays = {
            f"{prefix}-images-idx3-ubyte": np.full((count, 28, 28), 7, np.uint8),
            f"{prefix}-labels-idx1-ubyte": (np.arange(count) % 10).astype(np.uint8),
        }
        for name, array in arrays.items():
            content = replaced.get(name.replace("-", "_"), idx(array))
            (folder / (f"{name}.gz" if compress else name)).write_bytes(gzip.compress(content) if compress else content)
    return folder


def few(shapes):
    """The shapes of the same files with 20 and 10 images."""
    return {name: (20 if name.startswith("train") else 10, *shape[1:]) for name, shape in shapes.items()}


@pytest.fixture
def small_idx(monkeypatch):
    monkeypatch.setattr(named, "_IDX", few(named._IDX))
    return idx_files


@pytest.mark.parametrize(
    ("compress", "inside"), [(True, ""), (False, ""), (False, "FashionMNIST/raw"), (True, "FashionMNIST/raw")]
)
def test_idx_files_that_are_there_are_used(tmp_path, small_idx, compress, inside):
    folder = small_idx(tmp_path / inside, compress)
    before = sorted(folder.iterdir())
    found = load("fashion-mnist", 28, data_dir=tmp_path)
    assert found.train.images.shape == (20, 1, 28, 28)
    assert found.train.labels.tolist() == list(range(10)) * 2
    assert found.classes[9] == "Ankle boot"
    assert sorted(folder.iterdir()) == before  # the folder may be read-only


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"\0\0\x08\x01" + struct.pack(">I", 20) + b"\0" * 19, "is not the expected idx file of 20 bytes"),
        (b"PK\x03\x04", "is not the expected idx file"),
        (idx(np.full(20, 11, np.uint8)), "label 11"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, small_idx, content, fragment):
    small_idx(tmp_path, train_labels_idx1_ubyte=content)
    with pytest.raises(DataError, match=fragment):
        load("mnist", 28, data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "labels", "whose"),
    [
        ("mnist", [9, 0, 0, 3, 0, 2, 7, 2, 5, 5], "is of FashionMNIST, not MNIST"),
        ("fashion-mnist", [5, 0, 4, 1, 9, 2, 1, 3, 1, 4], "is of MNIST, not FashionMNIST"),
    ],
)
def test_files_of_another_data_set_with_the_same_names_are_refused(tmp_path, small_idx, name, labels, whose):
    small_idx(tmp_path, train_labels_idx1_ubyte=idx(np.array(labels * 2, np.uint8)))
    with pytest.raises(DataError, match=whose):
        load(name, 28, data_dir=tmp_path)
    other = "mnist" if name == "fashion-mnist" else "fashion-mnist"
    assert load(other, 28, data_dir=tmp_path).train.labels[:10].tolist() == labels


def test_a_damaged_archive_is_named(tmp_path, small_idx):
    small_idx(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8bdamaged")
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz is damaged"):
        load("mnist", 28, data_dir=tmp_path)


class Bomb:
    """A pickle that would leave a file behind if it were ever opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.fixture
def small_cifar(tmp_path, monkeypatch):
    """CIFAR-10's archive with two images a batch, whose checksums torchvision is told."""
    cifar = named.torchvision.datasets.CIFAR10
    names = [name for name, _ in cifar.train_list + cifar.test_list]

    def write(as_archive):
        contents = {
            name: pickle.dumps({"data": np.full((2, 3072), i, np.uint8), "labels": [0, 1]})
            for i, name in enumerate(names)
        }
        contents["batches.meta"] = pickle.dumps({"label_names": list("abcdefghij")})
        md5 = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
        monkeypatch.setattr(cifar, "train_list", [[n, md5[n]] for n in names[:5]])
        monkeypatch.setattr(cifar, "test_list", [[n, md5[n]] for n in names[5:]])
        monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": md5["batches.meta"]})
        with tarfile.open(tmp_path / cifar.filename, "w:gz") as archive:
            for name, content in contents.items():
                member = tarfile.TarInfo(f"{cifar.base_folder}/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        whole = (tmp_path / cifar.filename).read_bytes()
        monkeypatch.setattr(cifar, "tgz_md5", hashlib.md5(whole).hexdigest())
        if not as_archive:
            with tarfile.open(tmp_path / cifar.filename) as archive:
                archive.extractall(tmp_path, filter="data")
            (tmp_path / cifar.filename).unlink()
        return tmp_path

    return write


@pytest.mark.parametrize("as_archive", [True, False])
def test_cifar10_that_is_there_is_used(small_cifar, as_archive):
    found = load("cifar10", 32, data_dir=small_cifar(as_archive))
    assert found.train.images.shape == (10, 3, 32, 32)
    assert found.test.labels.tolist() == [0, 1]
    assert found.classes == tuple("abcdefghij")


def test_a_foreign_archive_is_never_opened(tmp_path):
    trace = tmp_path / "opened"
    content = pickle.dumps(Bomb(str(trace)))
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        for name in ("cifar-10-batches-py/data_batch_1", "../evil"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(DataError, match="is not CIFAR10's archive"):
        load("cifar10", 32, data_dir=tmp_path)
    assert not trace.exists()
    assert not (tmp_path.parent / "evil").exists()


def test_a_foreign_batch_is_never_unpickled(small_cifar, tmp_path):
    folder = small_cifar(as_archive=False)
    trace = tmp_path / "opened"
    (folder / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(Bomb(str(trace))))
    with pytest.raises(DataError, match="is damaged"):
        load("cifar10", 32, data_dir=folder)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "told"), [("cifar10", "CIFAR10"), ("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")]
)
def test_a_failed_download_says_how_to_get_the_files_by_hand(tmp_path, monkeypatch, name, told):
    def fail(url, *arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fail)
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    with pytest.raises(DataError) as raised:
        load(name, 28, data_dir=tmp_path / "new")
    assert f"can't download {told} (no network)" in str(raised.value)
    assert "http" in str(raised.value)
    assert f"into {tmp_path / 'new'}" in str(raised.value)
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.skipif(not FULL.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_full_fashion_mnist_as_debian_has_it():
    found = load("fashion-mnist", 28, data_dir=FULL)
    assert (len(found.train.labels), len(found.test.labels)) == (60_000, 10_000)
    assert np.bincount(found.train.labels).tolist() == [6000] * 10
    small = load("fashion-mnist-12k", 28)
    full = {image.tobytes() for image in found.train.images}
    assert all(image.tobytes() in full for image in small.train.images[:500])  # the embedded set is a part of it
