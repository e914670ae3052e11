"""What others left in a results folder: older and newer versions, a process that was killed, files changed by hand."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stored import make_run, rows_of_trial

import rresnet
from rresnet.tables import reading, runs
from rresnet.tables.measurement import SCHEMA_VERSION
from rresnet.tables.place import StoreError
from rresnet.tables.reading import DamagedFileWarning
from rresnet.tables.store import Writer

VERSIONS = Path(__file__).parent / "schema_versions"


@pytest.fixture
def written(tmp_path):
    """A results folder with one run of one trial."""
    with Writer(tmp_path, make_run()) as writer:
        writer.write(*rows_of_trial(writer.run, 0, images_per_second=250.0))
    return tmp_path


def rewrite(path, change):
    pq.write_table(change(pq.read_table(path)), path)


def test_there_is_a_file_of_each_version():
    assert sorted(int(folder.name) for folder in VERSIONS.iterdir()) == list(range(1, SCHEMA_VERSION + 1))


@pytest.mark.parametrize("folder", sorted(VERSIONS.iterdir()), ids=lambda folder: folder.name)
def test_files_of_each_version_are_read(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)  # a reader that is wrong may set files aside
    tables = rresnet.read(tmp_path)
    assert len(tables.trials) == 12
    assert tables.trials["schema_version"].eq(int(folder.name)).all()
    assert tables.trials["images_per_second"].between(100, 200).all()
    assert tables.trials["compile_cache"].isna().all()  # a column that this file has not
    assert tables.trials["pointwise"].eq("conv").all()  # an axis that it has not
    assert len(rresnet.speedup(tables.trials, over="batch_size", reference=1)) == 3


def test_texts_that_another_library_has_stored_as_large_ones_are_read(written):
    before = rresnet.read(written).trials

    def large(field):
        return field.with_type(pa.large_string()) if field.type == pa.string() else field

    rewrite(written / "trials" / "r1.parquet", lambda table: table.cast(pa.schema(map(large, table.schema))))
    assert rresnet.read(written).trials.equals(before)


def test_a_newer_version_is_refused_by_its_number(written):
    metadata = {b"rresnet_schema_version": str(SCHEMA_VERSION + 1).encode()}
    rewrite(written / "trials" / "r1.parquet", lambda table: table.replace_schema_metadata(metadata))
    with pytest.raises(
        StoreError,
        match=rf"r1\.parquet was written by a newer rresnet \(schema_version {SCHEMA_VERSION + 1}.*update rresnet",
    ):
        rresnet.read(written)
    assert (written / "trials" / "r1.parquet").exists()  # it is not damaged, so it is not set aside


@pytest.mark.parametrize("key", ["run_id", "trial_id"])
def test_rows_that_nobody_can_place_are_a_damaged_file(written, key):
    rewrite(written / "trials" / "r1.parquet", lambda table: table.drop_columns([key]))
    with pytest.warns(DamagedFileWarning, match=f"not every row has a {key}"):
        assert reading.read_tables(written)["trials"].num_rows == 0
    assert (written / "trials" / ".r1.parquet.damaged").exists()


def test_a_column_of_another_type_is_a_damaged_file(written):
    words = pa.array(["fast"])
    rewrite(
        written / "trials" / "r1.parquet",
        lambda table: table.set_column(table.column_names.index("images_per_second"), "images_per_second", words),
    )
    with pytest.warns(DamagedFileWarning, match=r"r1\.parquet is damaged"):
        assert reading.read_tables(written)["trials"].num_rows == 0


def test_a_name_that_is_no_text_is_a_damaged_file(written):
    path = written / "trials" / "r1.parquet"
    path.write_bytes(path.read_bytes().replace(b"images_per_second", b"images_per_\x80econd"))
    with pytest.warns(DamagedFileWarning, match=r"r1\.parquet is damaged"):
        assert reading.read_tables(written)["trials"].num_rows == 0


def test_what_a_killed_process_had_half_written_goes_when_its_run_goes_on(written):
    halves = [written / "trials" / ".r1.parquet.99.tmp", written / "runs" / ".r1.json.99.tmp"]
    others = written / "trials" / ".r2.parquet.99.tmp"  # may be another process's, at work now
    for path in (*halves, others):
        path.write_bytes(b"half")
    Writer(written, make_run()).close()
    assert not any(path.exists() for path in halves)
    assert others.exists()
    assert len(rresnet.read(written).trials) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        json.dumps({**asdict(make_run()), "name": 7}).encode(),
        json.dumps({**asdict(make_run()), "run_id": "another"}).encode(),
        json.dumps({**asdict(make_run()), "environment": ["torch"]}).encode(),
        json.dumps({**asdict(make_run()), "finished_at": 3}).encode(),
    ],
)
def test_a_manifest_that_was_changed_is_passed_over(written, content):
    assert [run.run_id for run in runs.read_runs(written)] == ["r1"]
    (written / "runs" / "r1.json").write_bytes(content)
    assert runs.read_runs(written) == []
