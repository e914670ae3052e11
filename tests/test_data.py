import io
import os
import runpy
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from image_files import png, write_folder, write_parquet
from PIL import Image

from rresnet import data
from rresnet.data import DataError, images, parquet

FULL = data.Path("/usr/share/datasets/fashion-mnist")


def load(dataset, image_size=8, **options):
    return data.load(str(dataset), image_size=image_size, **options)


def test_the_embedded_set_is_what_it_says():
    found = load("fashion-mnist-12k", image_size=28)
    assert found.train.images.shape == (10_000, 1, 28, 28)
    assert found.test.images.shape == (2_000, 1, 28, 28)
    assert np.bincount(found.train.labels).tolist() == [1000] * 10
    assert np.bincount(found.test.labels).tolist() == [200] * 10
    assert (found.classes[0], found.classes[9]) == ("T-shirt/top", "Ankle boot")
    assert found.fingerprint == "f35fce21231dc13a"
    assert load("fashion-mnist-12k", image_size=32).fingerprint == "8d64dc7a6cd6cb4b"  # as runs have it
    folder = data.Path(data.__file__).parent / "datasets"
    assert (folder / "fashion-mnist-12k.npz").stat().st_size <= 8 * 2**20
    assert "Zalando SE" in (folder / "LICENSE-fashion-mnist").read_text()


def test_synthetic_has_cifar10s_shape_and_something_to_learn():
    found, again, other = load("synthetic", 32), load("synthetic", 32), load("synthetic", 32, seed=1)
    assert found.train.images.shape == (50_000, 3, 32, 32)
    assert found.test.images.shape == (10_000, 3, 32, 32)
    assert found.fingerprint == again.fingerprint != other.fingerprint
    means = np.stack([found.train.images[found.train.labels == label][:100].mean(0) for label in range(10)])
    guess = np.abs(found.test.images[:200, None] - means[None]).mean((2, 3, 4)).argmin(1)
    assert (guess == found.test.labels[:200]).mean() > 0.95


@pytest.mark.parametrize("mode", ["I;16", "CMYK", "1", "LA", "RGBA", "P"])
def test_unusual_images_are_no_error(mode, tmp_path):
    write_folder(tmp_path)
    deep = np.full((8, 8), 40_000, np.uint16)
    odd = Image.fromarray(deep) if mode == "I;16" else Image.new(mode, (8, 8))
    (tmp_path / "cat" / "0.png").unlink()
    odd.save(tmp_path / "cat" / ("0.tif" if mode == "CMYK" else "0.png"))
    found = load(tmp_path)
    assert len(found.train.labels) + len(found.test.labels) == 12


def test_an_animated_image_gives_its_first_frame(tmp_path):
    write_folder(tmp_path)
    frames = [Image.new("L", (8, 8), shade) for shade in (250, 50)]  # which no other image has
    frames[0].save(tmp_path / "cat" / "x.gif", save_all=True, append_images=frames[1:])
    found = load(tmp_path)
    shades = {int(image.max()) for split in (found.train, found.test) for image in split.images}
    assert (250 in shades, 50 in shades) == (True, False)


def test_a_folder_is_split_by_its_seed_class_by_class(tmp_path):
    found = load(write_folder(tmp_path, count=12))
    assert found.classes == ("cat", "dog")
    assert np.bincount(found.test.labels).tolist() == [2, 2]
    assert np.bincount(found.train.labels).tolist() == [10, 10]
    assert load(tmp_path).fingerprint == found.fingerprint


@pytest.mark.parametrize(
    ("train", "test"), [("train", "test"), ("train", "val"), ("train", "validation"), ("Training", "TEST")]
)
def test_a_folder_may_bring_its_own_split(tmp_path, train, test):
    write_folder(tmp_path / train, count=3)
    write_folder(tmp_path / test, count=1)
    found = load(tmp_path)
    assert (len(found.train.labels), len(found.test.labels)) == (6, 2)


def test_a_folder_of_the_users_is_found_and_one_of_parquet_files_told_what_to_give(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_folder(tmp_path / "mine", count=3)
    assert data.load("~/mine", image_size=8).classes == ("cat", "dog")
    (tmp_path / "parts").mkdir()
    write_parquet(tmp_path / "parts" / "a.parquet")
    with pytest.raises(
        data.DataError, match=r"no class folders.*of several Parquet files, give one: --dataset FOLDER/FILE"
    ):
        load(tmp_path / "parts")
    (tmp_path / "repository" / "data").mkdir(parents=True)
    write_parquet(tmp_path / "repository" / "data" / "a.parquet")
    with pytest.raises(data.DataError, match=r"data has no images.*of several Parquet files, give one"):
        load(tmp_path / "repository")  # as Hugging Face's files lie in `data/`


def test_what_is_hidden_in_a_folder_is_no_image(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "cat" / "._1.png").write_bytes(b"what macOS adds")
    (tmp_path / "dog" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "dog" / ".ipynb_checkpoints" / "1-checkpoint.png").write_bytes(
        (tmp_path / "dog" / "1.png").read_bytes()
    )
    found = load(tmp_path)
    assert len(found.train.labels) + len(found.test.labels) == 12


def test_linked_folders_are_looked_into_once_and_none_above(tmp_path):
    write_folder(tmp_path / "images")
    write_folder(tmp_path / "more", count=2)
    cat = tmp_path / "images" / "cat"
    for name, to in (("more", tmp_path / "more" / "cat"), ("again", tmp_path / "more" / "cat"), ("up", tmp_path)):
        (cat / name).symlink_to(to)
    (cat / "self").symlink_to(cat)
    found = load(tmp_path / "images")
    assert len(found.train.labels) + len(found.test.labels) == 12 + 2


def test_a_folder_that_may_not_be_read_is_not_passed_over(tmp_path, monkeypatch):
    write_folder(tmp_path)
    (tmp_path / "cat" / "locked").mkdir()
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(data.DataError, match=r"cat/locked.*Permission denied|Permission denied.*cat/locked"):
        load(tmp_path)


@pytest.mark.parametrize(("one", "other"), [("train", "dev"), ("extra", "Test")])
def test_one_part_of_a_split_beside_something_else_is_no_class(tmp_path, one, other):
    for part in (one, other):
        write_folder(tmp_path / part)
    with pytest.raises(data.DataError, match=r"rename the other, or give .*/(train|Test) alone"):
        load(tmp_path)


def test_a_class_may_be_called_train(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "dog").rename(tmp_path / "train")
    assert load(tmp_path).classes == ("cat", "train")


def test_images_are_scaled_on_the_short_side_and_cut_in_the_centre(tmp_path):
    wide = np.zeros((4, 12), np.uint8)  # three squares of 4 x 4; the middle one is kept
    wide[:, 4:8], wide[:, 8:] = 100, 200
    path = write_parquet(tmp_path / "a.parquet", [png(wide)] * 6)
    assert (load(path, image_size=4).train.images == 100).all()


@pytest.mark.parametrize("image_size", [4, 5, 16])
def test_the_median_of_the_short_sides_is_told_whatever_they_are_brought_to(tmp_path, image_size):
    images = [png(np.zeros(shape, np.uint8)) for shape in [(4, 12), (16, 5), (5, 30), (30, 40), (4, 4), (6, 6)]]
    assert load(write_parquet(tmp_path / "a.parquet", images), image_size=image_size).short_side == 5
    assert load(write_folder(tmp_path / "folder"), image_size=image_size).short_side == 8
    assert load("fashion-mnist-12k", image_size=image_size).short_side is None


def test_grey_images_stay_one_channel_and_mixed_ones_become_three(tmp_path):
    assert load(write_folder(tmp_path / "grey", mode="L")).train.images.shape[1] == 1
    mixed = write_folder(tmp_path / "mixed", mode="L")
    Image.new("RGB", (8, 8), (9, 8, 7)).save(mixed / "cat" / "0.png")
    found = load(mixed)
    assert found.train.images.shape[1] == 3


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png(np.full((8, 8), 65535, np.uint16)), 255),  # 16 bits scale down
        (png(np.full((8, 8), 257, np.uint16)), 1),
        (png(np.full((8, 8), 200, np.uint16)), 0),  # however dark the image is
        (png(np.full((8, 8), 0.5, np.float32), "TIFF"), 127),
        (png(np.full((8, 8), 200, np.float32), "TIFF"), 200),
        (png(np.full((8, 8), 200, np.int32), "TIFF"), 200),
        (png(np.full((8, 8), 65535, np.int32), "TIFF"), 255),
        (png(np.full((8, 8, 4), 255, np.uint8)), 255),  # alpha goes
        (png(np.full((8, 8), True)), 255),  # 1 bit
        (png(np.full((8, 8), 77, np.uint8), "GIF", save_all=True, append_images=[Image.new("L", (8, 8), 9)]), 77),
    ],
)
def test_unusual_images_are_brought_to_eight_bits(tmp_path, content, expected):
    found = load(write_parquet(tmp_path / "a.parquet", [content] * 6))
    assert (found.train.images == expected).all()


def test_cmyk_becomes_rgb(tmp_path):
    file = io.BytesIO()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(file, "JPEG", quality=100)
    red = load(write_parquet(tmp_path / "a.parquet", [file.getvalue()] * 6)).train.images[0, :, 0, 0]
    assert red[0] > 200
    assert red[1:].max() < 60


def test_hugging_face_files_bring_names_and_split(tmp_path):
    names = b'{"info": {"features": {"label": {"names": ["cat", "dog", "fox"], "_type": "ClassLabel"}}}}'
    path = write_parquet(
        tmp_path / "a.parquet", image_name="img", metadata={b"huggingface": names}, split=["train"] * 4 + ["test"] * 2
    )
    found = load(path, image_size=4)
    assert found.classes == ("cat", "dog", "fox")
    assert (len(found.train.labels), found.test.labels.tolist()) == (4, [0, 1])
    binary = write_parquet(tmp_path / "b.parquet", pa.array([png(np.zeros((4, 4), np.uint8))] * 6), [5, 7] * 3)
    assert load(binary, image_size=4).classes == ("5", "7")
    assert set(load(binary, image_size=4).train.labels.tolist()) == {0, 1}


@given(hnp.arrays(np.int64, st.integers(1, 60), elements=st.integers(0, 4)), st.integers(0, 99))
def test_a_stratified_split_is_a_partition_that_tests_every_class(labels, seed):
    train, test = images.stratified_test_split(labels, seed)
    assert sorted([*train, *test]) == list(range(len(labels)))
    for label in np.unique(labels):
        members = int((labels == label).sum())
        tested = int((labels[test] == label).sum())
        assert tested == (max(1, members // 6) if members > 1 else 0)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_are_a_data_error_and_nothing_else(tmp_path, content, as_image):
    path = tmp_path / "x.parquet"
    if as_image:
        write_parquet(path, [content] * 6)
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.parquet"):
        load(path)


def test_what_does_not_fit_in_memory_is_refused_before_it_is_made(tmp_path, monkeypatch):
    class Little:
        available = 2**30

    monkeypatch.setattr(data.psutil, "virtual_memory", Little)
    with pytest.raises(DataError, match=r"needs 1\.0 GiB twice, and 1\.0 GiB is free: lower --image-size"):
        load(write_folder(tmp_path), image_size=5500)


def test_a_parquet_file_that_unpacks_to_more_than_memory_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "bomb.parquet"
    write_parquet(path, [bytes(2**20)] * 128, [0] * 128)
    assert path.stat().st_size < 2**21  # 128 MiB of zeros
    monkeypatch.setattr(parquet.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**27))
    with pytest.raises(DataError, match=r"bomb\.parquet holds more than 0\.1 GiB of images, half of the memory"):
        load(path)


def test_only_the_formats_that_are_named_are_opened(tmp_path):
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("L", (32, 32)).save(
                tmp_path / "images" / name / f"{number}.png", "EPS"
            )  # would start Ghostscript
    with pytest.raises(DataError, match="is not a readable image"):
        load(tmp_path / "images")


@pytest.mark.skipif(not FULL.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_embedded_set_can_be_built_again(tmp_path, monkeypatch):
    build = runpy.run_path(str(data.Path(__file__).parents[1] / "tools" / "build_fashion_mnist_12k.py"))
    monkeypatch.setitem(build["main"].__globals__, "TARGET", tmp_path / "built.npz")
    build["main"](FULL)
    small = load("fashion-mnist-12k", 28)
    with np.load(tmp_path / "built.npz") as built:
        assert np.array_equal(built["train_images"], small.train.images)
        assert np.array_equal(built["test_images"], small.test.images)
        assert np.array_equal(built["train_labels"], small.train.labels)
        assert np.array_equal(built["test_labels"], small.test.labels)
        assert tuple(built["classes"]) == small.classes


def test_reading_the_users_images_stops_when_asked(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.new("L", (8, 8)).save(tmp_path / name / f"{number}.png")
    asked = iter([False] * 3 + [True] * 100)
    with pytest.raises(KeyboardInterrupt):
        data.load(str(tmp_path), image_size=8, stop=lambda: next(asked))


def test_a_folder_that_is_no_data_set_is_not_suggested(tmp_path):
    for name in ("tests", "petz"):
        (tmp_path / name / "cats").mkdir(parents=True)
    with pytest.raises(data.DataError) as raised:
        data.load(str(tmp_path / "pets"), image_size=8)
    assert "did you mean" not in str(raised.value)
    Image.new("L", (8, 8)).save(tmp_path / "petz" / "cats" / "1.png")
    with pytest.raises(data.DataError, match=r"did you mean .*petz"):
        data.load(str(tmp_path / "pets"), image_size=8)
