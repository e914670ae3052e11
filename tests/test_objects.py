"""Results in object storage, on a real server of its protocol: the same tables, resumed, held against others."""

import contextlib
import itertools
import signal
import threading
from pathlib import Path

import pandas as pd
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq
import pytest
from stored import make_run, write

import rresnet
from rresnet import command
from rresnet.reporting import export
from rresnet.tables import objects, place, reading, runs, store
from rresnet.tables.place import StoreError
from rresnet.tables.reading import DamagedFileWarning
from rresnet.tables.store import Writer


def test_the_tables_are_those_of_a_folder_byte_for_byte(url, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "TRIALS_PER_PART", 2)
    for results in (url, tmp_path):
        write(results, *range(5)).finish("2026-01-01T01:00:00+00:00")
    kept = place.at(url)
    for table in ("trials", "windows"):
        assert kept.names(table) == ["r1.parquet", "r1.part1.parquet", "r1.part2.parquet"]
        for name in kept.names(table):
            assert kept.read(f"{table}/{name}") == (tmp_path / table / name).read_bytes()
    assert pd.read_parquet(f"{url}/trials")["images_per_second"].tolist() == [100.0, 101.0, 102.0, 103.0, 104.0]
    assert rresnet.read(url).trials.equals(rresnet.read(tmp_path).trials)
    assert runs.read_runs(url) == runs.read_runs(tmp_path)


@pytest.mark.parametrize("form", ["tensorboard", "mlflow"])
def test_what_can_not_be_written_beside_them_is_refused(url, tmp_path, monkeypatch, capsys, form):
    write(url, 0)
    monkeypatch.chdir(tmp_path)
    assert command.main(["export", url, "--format", form]) == 2
    assert "give --out" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_a_command_left_is_continued_and_its_lock_is_gone(url):
    write(url, 0, 1)
    found = runs.open_run(url, make_run(run_id="r2"), fresh=False)
    assert found.run_id == "r1"
    write(url, 1, 2, run=found).finish("2026-01-01T01:00:00+00:00")
    assert sorted(row["repeat"] for row in reading.read_tables(url)["trials"].to_pylist()) == [0, 1, 2]
    assert runs.read_runs(url)[0].planned == 3
    assert place.at(url).names("runs") == ["r1.json"]
    assert runs.open_run(url, make_run(run_id="r2"), fresh=False).run_id == "r2"


def test_files_of_a_run_and_paths_that_lost_a_slash(url, tmp_path):
    with Writer(url, make_run()) as writer:
        writer.keep("trace.json", b"{}")
    assert place.at(url).read("files/r1/trace.json") == b"{}"
    assert place.at(Path(url)).full_name("trials") == f"{url}/trials"
    assert place.at(f"file://{tmp_path}").full_name("trials") == str(tmp_path / "trials")


def test_a_fault_that_passes_is_outwaited(url, monkeypatch):
    kept, pauses = place.at(url), []
    real, fails = kept.system, iter(["AWS Error SLOW_DOWN during", "AWS Error NETWORK_CONNECTION during"])

    class Faulty:
        def open_output_stream(self, *given, **named):
            for fault in fails:
                raise OSError(fault)
            return real.open_output_stream(*given, **named)

    monkeypatch.setattr(kept, "system", Faulty())
    monkeypatch.setattr(objects.time, "sleep", pauses.append)
    kept.write("x", b"content")
    monkeypatch.undo()
    assert kept.read("x") == b"content"
    assert pauses == [1, 2]


def test_an_object_that_is_replaced_while_it_is_read_is_read_whole(url):
    """No size goes and comes back, as none of ours does: by its size a version is told."""
    write(url, 0)
    done, kept = threading.Event(), place.at(url)
    versions = (bytes([97 + number % 26]) * (number + (10 if number % 2 else 200_000)) for number in itertools.count())
    kept.write("figures/x", next(versions))

    def replace():
        while not done.is_set():
            place.at(url).write("figures/x", next(versions))

    writing = threading.Thread(target=replace)
    writing.start()
    seen = set()
    try:
        for _ in range(40):
            with contextlib.suppress(OSError):  # replaced each time it was tried, or while the server was sending it
                seen.add(kept.read("figures/x"))
    finally:
        done.set()
        writing.join()
    assert len(seen) > 1
    for content in seen:
        number = len(content) - (200_000 if len(content) >= 200_000 else 10)
        assert content == bytes([97 + number % 26]) * len(content)


@pytest.mark.parametrize("content", [b"1", b"1" * 100_000], ids=["shorter than the refusal", "longer"])
def test_an_object_that_is_removed_while_it_is_read_is_not_found(url, content, monkeypatch):
    kept = place.at(url)
    kept.write("runs/r1.lock", content)

    class Removed:
        """Another process removes the object between the requests for its size and its content."""

        def open_input_file(self, path):
            file = system.open_input_file(path)
            system.delete_file(path)
            return file

        def get_file_info(self, path):
            return system.get_file_info(path)

    system = kept.system
    monkeypatch.setattr(kept, "system", Removed())
    with pytest.raises(FileNotFoundError):
        kept.read("runs/r1.lock")


def test_a_damaged_object_is_named_and_stays(url):
    write(url, 0)
    kept = place.at(url)
    kept.write("trials/r1.parquet", kept.read("trials/r1.parquet")[:-20])
    with pytest.warns(DamagedFileWarning, match=r"s3://.*/trials/r1\.parquet is damaged"):
        assert reading.read_tables(url)["trials"].num_rows == 0
    assert kept.names("trials") == ["r1.parquet"]


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ("s3://", "s3:// names no bucket: give --results-dir s3://BUCKET/FOLDER"),
        ("s3://no-such-bucket/x", r"can't use s3://no-such-bucket/x \(NO_SUCH_BUCKET .*check the bucket's name"),
        ("s9://bucket/x", r"can't use s9://bucket/x \(Unrecognized filesystem type"),
    ],
)
def test_a_place_that_is_none_is_told(url, results, message):
    with pytest.raises(StoreError, match=message):
        place.at(results).check_writable()


def test_a_network_that_does_not_answer_is_told(url, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StoreError, match=r"NETWORK_CONNECTION.*AWS_ENDPOINT_URL and the network"):
        rresnet.read("s3://elsewhere/x")


def test_no_results_there_are_told(url):
    with pytest.raises(StoreError, match="no results in s3://"):
        rresnet.read(url)
    place.at(url).check_writable()
    assert place.at(url).names("runs") == []  # the trial object is gone


def test_the_report_and_the_export_read_and_write_there(url):
    from rresnet import command

    write(url, 0, 1, 2)
    assert command.main(["report", url]) == 0
    kept = place.at(url)
    assert b"<html" in kept.read("report/index.html")
    assert {"index.html", "summary.md"} <= set(kept.names("report"))
    assert len(export.table(Path(url), "trials")) == 3
    assert not Path("s3:").exists()


def test_a_schema_is_the_same_there(url):
    write(url, 0)
    system, path = pa_fs.FileSystem.from_uri(f"{url}/trials/r1.parquet")
    assert pq.read_schema(path, filesystem=system).field("step_seconds").metadata[b"doc"].startswith(b"mean seconds")


@pytest.fixture
def interruptible():
    """Ctrl-C as Python has it, whatever handler a command left that ran in this process before."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_during_an_upload_leaves_the_object_whole(url, interruptible, monkeypatch):
    kept = place.at(url)
    kept.write("files/a", b"before")
    real = kept.system

    class Interrupting:
        """A storage during whose first request the main thread gets Ctrl-C, which Python raises when it next runs."""

        def open_output_stream(self, *given, **named):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            return real.open_output_stream(*given, **named)

    monkeypatch.setattr(kept, "system", Interrupting())
    with pytest.raises(KeyboardInterrupt):
        kept.write("files/a", b"after")
    for thread in threading.enumerate():
        if thread.name == "rresnet-upload":
            thread.join()
    monkeypatch.setattr(kept, "system", real)
    assert kept.read("files/a") == b"after"  # or as it was, but never empty
