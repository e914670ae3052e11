"""Damaged files, disks that fail, and folders that can not be written."""

import os
import re

import pandas as pd
import pyarrow as pa
import pytest
from stored import make_run, rows_of_trial

from rresnet.tables import reading, runs
from rresnet.tables.place import StoreError
from rresnet.tables.store import Writer


def test_a_damaged_file_is_named(tmp_path):
    run = make_run()
    with Writer(tmp_path, run) as writer:
        writer.write(*rows_of_trial(run, 0))
    path = tmp_path / "trials" / "r1.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content[: len(content) // 2])
    other = make_run(run_id="r2")
    with Writer(tmp_path, other) as writer:
        writer.write(*rows_of_trial(other, 0))
    with pytest.warns(reading.DamagedFileWarning, match=r"r1\.parquet is damaged .* and is left out"):
        found = reading.read_tables(tmp_path)
    assert found["trials"]["run_id"].to_pylist() == ["r2"]  # the rest is read
    assert (tmp_path / "trials" / ".r1.parquet.damaged").exists()  # set aside,
    assert len(reading.read_tables(tmp_path)["trials"]) == 1  # and told once
    assert pd.read_parquet(tmp_path / "trials")["run_id"].tolist() == ["r2"]  # pandas meets it no more


def test_a_flipped_bit_is_found(tmp_path):
    run = make_run()
    with Writer(tmp_path, run) as writer:
        writer.write(*rows_of_trial(run, 0, error_message="odd words"))
    path = tmp_path / "trials" / "r1.parquet"
    content = bytearray(path.read_bytes())
    content[content.index(b"odd words")] ^= 0x01  # too short to be compressed, so that only a checksum tells
    path.write_bytes(content)
    with pytest.warns(reading.DamagedFileWarning, match="damaged"):
        assert len(reading.read_tables(tmp_path)["trials"]) == 0


def test_a_fault_of_the_system_sets_no_good_file_aside(tmp_path, monkeypatch):
    run = make_run()
    with Writer(tmp_path, run) as writer:
        writer.write(*rows_of_trial(run, 0))

    def broken(*arguments, **options):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("pathlib.Path.read_bytes", broken)
    with pytest.raises(StoreError, match=r"can't read .*r1\.parquet: Input/output error"):
        reading.read_tables(tmp_path)
    assert (tmp_path / "trials" / "r1.parquet").exists()


@pytest.mark.parametrize(
    "error",
    [
        pa.ArrowMemoryError("malloc of size 64 failed"),
        MemoryError(),
        pa.ArrowException("Unknown error: Failed to launch worker thread: Resource temporarily unavailable"),
        OSError("ZSTD decompression failed: Allocation error : not enough memory"),
        OSError(5, "Input/output error"),
    ],
)
def test_want_of_memory_or_threads_sets_no_good_file_aside(tmp_path, monkeypatch, error):
    run = make_run()
    with Writer(tmp_path, run) as writer:
        writer.write(*rows_of_trial(run, 0))

    def broken(*arguments, **options):
        raise error

    monkeypatch.setattr(reading.pq.ParquetFile, "read", broken)
    with pytest.raises(StoreError, match=r"can't read .*r1\.parquet now .*free memory"):
        reading.read_tables(tmp_path)
    assert (tmp_path / "trials" / "r1.parquet").exists()


def test_a_file_that_is_not_rresnets_is_left_alone(tmp_path):
    run = make_run()
    with Writer(tmp_path, run) as writer:
        writer.write(*rows_of_trial(run, 0))
    mine = tmp_path / "trials" / "my_speedups.parquet"
    pd.DataFrame({"speedup": [1.5]}).to_parquet(mine)
    with pytest.warns(reading.DamagedFileWarning, match=r"my_speedups\.parquet is not a table of rresnet's .* move it"):
        assert len(reading.read_tables(tmp_path)["trials"]) == 1
    assert mine.exists()


@pytest.mark.parametrize("copied", ["copy of r1", "r1 (1)", "a"])
def test_rows_of_a_copied_file_count_once(tmp_path, copied):
    run = make_run()
    with Writer(tmp_path, run) as writer:
        writer.write(*rows_of_trial(run, 0, images_per_second=100.0))
    old = (tmp_path / "trials" / "r1.part1.parquet", tmp_path / "trials" / "r1.parquet")
    content = next(path for path in old if path.exists()).read_bytes()
    with Writer(tmp_path, run) as writer:
        writer.write(*rows_of_trial(run, 0, images_per_second=200.0))
        writer.write(*rows_of_trial(run, 1, images_per_second=300.0))
    (tmp_path / "trials" / f"{copied}.parquet").write_bytes(content)
    with pytest.warns(reading.DamagedFileWarning, match=rf"{re.escape(copied)}\.parquet has 1 rows .* move this copy"):
        found = reading.read_tables(tmp_path)["trials"]
    assert found["images_per_second"].to_pylist() == [200.0, 300.0]
    for path in (tmp_path / "trials").glob("r1.*"):
        path.unlink()
    assert reading.read_tables(tmp_path)["trials"]["images_per_second"].to_pylist() == [100.0]  # it is all there is


def test_a_folder_that_can_not_be_written_is_found_before_anything_starts(tmp_path):
    (tmp_path / "results").write_text("a file in the way")
    with pytest.raises(StoreError, match="choose another --results-dir"):
        runs.open_run(tmp_path / "results", make_run(), fresh=False)


@pytest.mark.parametrize("mended", [True, False])
def test_a_failed_write_leaves_what_was_there_and_is_tried_again_at_the_end(tmp_path, monkeypatch, mended):
    run = make_run()
    writer = Writer(tmp_path, run)
    writer.write(*rows_of_trial(run, 0))
    writer.flush()
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    writer.write(*rows_of_trial(run, 1))
    with pytest.raises(StoreError, match=r"No space left on device.*make space"):
        writer.flush()
    if mended:
        monkeypatch.undo()
    writer.close()
    for name in ("trials", "windows"):
        assert len(pd.read_parquet(tmp_path / name)) == (2 if mended else 1)
    assert not list((tmp_path / "trials").glob(".*"))
