import contextlib
import multiprocessing
import threading
import time

import pandas as pd
import pytest
from stored import make_run, rows_of_trial

from rresnet.tables import place, reading, runs, store
from rresnet.tables.measurement import SCHEMAS
from rresnet.tables.place import StoreError
from rresnet.tables.store import Writer


def test_a_row_is_readable_by_pandas_before_the_run_ends(tmp_path):
    run = make_run()
    with Writer(tmp_path, run) as writer:
        writer.write(*rows_of_trial(run, 0, images_per_second=250.0))
        writer.flush()
        during = pd.read_parquet(tmp_path / "trials")
    assert during["images_per_second"].tolist() == [250.0]
    assert pd.read_parquet(tmp_path / "windows")["images"].tolist() == [16]


def test_a_file_is_kept_by_its_run_and_one_that_is_not_is_told(tmp_path):
    with contextlib.closing(Writer(tmp_path, make_run())) as writer:
        writer.keep("a.trace.json.gz", b"trace")
        assert (tmp_path / "files" / "r1" / "a.trace.json.gz").read_bytes() == b"trace"
        (tmp_path / "files" / "r1" / "in the way").mkdir()
        with pytest.raises(StoreError, match="can't write to"):
            writer.keep("in the way", b"trace")


def test_missing_is_null_and_never_zero(tmp_path):
    run = make_run()
    with Writer(tmp_path, run) as writer:
        writer.write(*rows_of_trial(run, 0, status="killed"))
    row = reading.read_tables(tmp_path)["trials"].to_pylist()[0]
    assert row["status"] == "killed"
    assert row["images_per_second"] is None
    assert row["measured_images"] is None
    assert row["quality_flags"] is None


def test_a_text_that_is_none_is_written_as_far_as_it_is_one(tmp_path):
    run = make_run()
    with Writer(tmp_path, run) as writer:
        writer.write(*rows_of_trial(run, 0, status="error", error_message="bad \udc80 name"))
    assert pd.read_parquet(tmp_path / "trials")["error_message"].tolist() == ["bad ? name"]


@pytest.mark.parametrize("space", [False, True])
def test_who_stops_is_told_of_rows_that_are_not_written_unless_they_are_in_the_end(tmp_path, monkeypatch, space):
    write, full = place._Folder.write, threading.Event()

    def write_if_there_is_room(self, name, content):
        if full.is_set():
            raise OSError(28, "No space left on device")
        write(self, name, content)

    monkeypatch.setattr(place._Folder, "write", write_if_there_is_room)
    writer = Writer(tmp_path, make_run())
    full.set()
    writer.write(*rows_of_trial(writer.run, 0))
    writer._pool.submit(lambda: None).result()  # by then that write has failed
    if space:
        full.clear()
    with contextlib.nullcontext() if space else pytest.raises(StoreError, match="No space left on device"):
        writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert len(reading.read_tables(tmp_path)["trials"]) == (1 if space else 0)


def test_rows_that_nobody_can_write_are_told_to_who_gave_them(tmp_path):
    run = make_run()
    trial_id, of_trial = rows_of_trial(run, 0)
    broken = {**of_trial, "trials": [{**of_trial["trials"][0], "error_message": "\udc80"}]}
    writer = Writer(tmp_path, run)
    writer.write(trial_id, broken)
    with pytest.raises(UnicodeEncodeError):
        writer.flush()  # and does not wait for ever
    writer.close()
    with pytest.raises(UnicodeEncodeError), Writer(tmp_path, make_run(run_id="r2")) as writer:
        writer.write(trial_id, broken)


def test_the_schema_holds_every_column_of_the_contract():
    contract = {
        "run_id",
        "experiment",
        "trial_id",
        "cell_id",
        "repeat",
        "process",
        "attempt",
        "schema_version",
        "device",
        "recipe",
        "precision",
        "input",
        "execution",
        "channels_last",
        "model",
        "dataset",
        "image_size",
        "batch_size",
        "global_batch_size",
        "num_workers",
        "cpu_threads",
        "seed",
        "epochs",
        "status",
        "error_type",
        "error_message",
        "images_per_second",
        "step_seconds",
        "epoch_seconds",
        "epoch_seconds_kind",
        "startup_seconds",
        "compile_seconds",
        "warmup_seconds",
        "measured_seconds",
        "measured_images",
        "compute_images_per_second",
        "input_images_per_second",
        "bottleneck",
        "percent_of_limit",
        "peak_memory_bytes",
        "energy_joules",
        "gpu_utilization_percent",
        "observed_threads",
        "first_loss",
        "final_loss",
        "test_accuracy",
        "dataset_fingerprint",
        "quality_flags",
        "hostname",
        "cpu_model",
        "cpu_count",
        "gpu_name",
        "driver_version",
        "torch_version",
        "cuda_version",
        "ray_version",
        "rresnet_version",
        "git_commit",
        "started_at",
        "finished_at",
    }
    schema = SCHEMAS["trials"]
    assert contract <= set(schema.names)
    assert schema.metadata[b"rresnet_schema_version"] == b"1"
    assert all(field.metadata[b"doc"] for field in schema)
    assert str(schema.field("started_at").type) == "timestamp[us, tz=UTC]"
    assert str(schema.field("quality_flags").type).startswith("list<")


def test_a_trial_run_again_replaces_its_row(tmp_path):
    run = make_run()
    with Writer(tmp_path, run) as writer:
        writer.write(*rows_of_trial(run, 0, status="killed"))
        writer.write(*rows_of_trial(run, 1))
    with Writer(tmp_path, run) as writer:
        writer.write(*rows_of_trial(run, 0, images_per_second=99.0))
    found = pd.read_parquet(tmp_path / "trials").sort_values("repeat")
    assert found["status"].tolist() == ["ok", "ok"]
    assert found["images_per_second"].iloc[0] == 99.0
    assert len(pd.read_parquet(tmp_path / "windows")) == 2


def test_parts_of_a_run_of_many_trials_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "TRIALS_PER_PART", 4)
    run, folder = make_run(), tmp_path / "trials"
    seen: dict[str, bytes] = {}
    for first in (0, 6):  # the second command goes on with the part that the first began
        writer = Writer(tmp_path, run)
        with writer:
            for repeat in range(first, first + 6):
                writer.write(*rows_of_trial(run, repeat))
                writer.flush()
                assert sorted(pd.read_parquet(folder)["repeat"]) == list(range(repeat + 1))
                parts = {path.name: path.read_bytes() for path in folder.iterdir()}
                assert sum(parts.get(name) != content for name, content in seen.items()) <= 1
                assert seen.keys() <= parts.keys()
                seen = parts
        writer.finish("2026-01-01T01:00:00+00:00")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == seen
    assert sorted(seen) == ["r1.parquet", "r1.part1.parquet", "r1.part2.parquet"]
    assert {len(pd.read_parquet(path)) for path in folder.iterdir()} == {4}
    assert len(reading.read_tables(tmp_path)["windows"]) == 12


def test_what_is_run_again_takes_the_place_of_its_old_row_however_many_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "TRIALS_PER_PART", 4)
    run = make_run()
    with Writer(tmp_path, run) as writer:
        for repeat in range(9):
            writer.write(*rows_of_trial(run, repeat, status="killed"))
            writer.flush()  # so that they are in several parts
    writer = Writer(tmp_path, run)
    with writer:
        for repeat in range(10):  # one of them is new
            writer.write(*rows_of_trial(run, repeat, images_per_second=2.0))
            writer.flush()
            during = pd.read_parquet(tmp_path / "trials")
            assert during["trial_id"].is_unique
            assert during["images_per_second"].notna().sum() == repeat + 1
    for when in ("stopped", "complete"):
        found = reading.read_tables(tmp_path)
        assert found["trials"]["images_per_second"].to_pylist() == [2.0] * 10, when
        assert len(found["windows"]) == 10
        writer.finish("2026-01-01T01:00:00+00:00")


def test_rows_are_written_soon_without_being_asked_for(tmp_path):
    run = make_run()
    with Writer(tmp_path, run) as writer:
        for repeat in range(3):
            writer.write(*rows_of_trial(run, repeat))
        ends = time.monotonic() + 20
        while len(reading.read_tables(tmp_path)["trials"]) < 3:
            assert time.monotonic() < ends, "rows that nobody waits for are not written"
            time.sleep(0.01)


def test_a_file_that_is_gone_since_it_was_listed_has_no_rows(tmp_path):
    assert len(reading.read_files(place.at(tmp_path), ["trials/r1.parquet"], SCHEMAS["trials"])) == 0


def test_a_trial_that_is_run_again_leaves_nothing_of_the_time_before(tmp_path):
    run = make_run()
    with Writer(tmp_path, run) as writer:
        writer.write(*rows_of_trial(run, 0))
        writer.write(*rows_of_trial(run, 1))
    trial_id, again = rows_of_trial(run, 0, status="killed")
    with Writer(tmp_path, run) as writer:
        writer.write(trial_id, {**again, "windows": []})
    assert trial_id not in pd.read_parquet(tmp_path / "windows")["trial_id"].tolist()
    assert len(pd.read_parquet(tmp_path / "windows")) == 1


def test_a_trial_that_is_written_twice_by_one_command_has_one_row(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "TRIALS_PER_PART", 2)
    run = make_run()
    with Writer(tmp_path, run) as writer:
        for repeat, rate in ((0, 1.0), (1, 1.0), (2, 1.0), (2, 2.0), (0, 2.0)):  # in the open part, and in a full one
            writer.write(*rows_of_trial(run, repeat, images_per_second=rate))
            writer.flush()
    found = pd.read_parquet(tmp_path / "trials").sort_values("repeat")
    assert found["images_per_second"].tolist() == [2.0, 1.0, 2.0]
    assert len(pd.read_parquet(tmp_path / "windows")) == 3
    assert not (tmp_path / "epochs").exists()  # of which no trial has any


def test_runs_of_the_same_trials_hide_nothing_of_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "TRIALS_PER_PART", 2)
    for run in (make_run(), make_run(run_id="r2"), make_run(run_id="r3.party")):
        with Writer(tmp_path, run) as writer:
            for repeat in range(5):
                writer.write(*rows_of_trial(run, repeat))
                writer.flush()
    assert len(pd.read_parquet(tmp_path / "trials")) == 15
    assert len(reading.read_tables(tmp_path)["trials"]) == 15


def test_the_rows_of_one_run_are_read_alone(tmp_path):
    for run in (make_run(), make_run(run_id="r2")):
        with Writer(tmp_path, run) as writer:
            writer.write(*rows_of_trial(run, 0))
    assert reading.read_tables(tmp_path, ["trials"], run_id="r2")["trials"]["run_id"].to_pylist() == ["r2"]


def test_two_commands_never_continue_one_run_at_once(tmp_path):
    run = make_run()
    runs.open_run(tmp_path, run, fresh=False)
    first = Writer(tmp_path, run)
    with pytest.raises(StoreError, match="another process is working on run r1"):
        Writer(tmp_path, run)
    first.close()
    Writer(tmp_path, run).close()


def _write_many(folder, name, count):
    run = make_run(run_id=name, name=name)
    with Writer(folder, runs.open_run(folder, run, fresh=False)) as writer:
        for repeat in range(count):
            writer.write(*rows_of_trial(run, repeat))


def test_writers_at_once_lose_nothing_while_a_reader_polls(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(tmp_path, f"w{i}", 50)) for i in range(3)]
    for writer in writers:
        writer.start()
    done, polls = threading.Event(), []

    def poll():
        while not done.is_set():
            if list((tmp_path / "trials").glob("[!.]*.parquet")):
                polls.append(len(pd.read_parquet(tmp_path / "trials")))

    reader = threading.Thread(target=poll)
    reader.start()
    for writer in writers:
        writer.join()
    done.set()
    reader.join()
    found = pd.read_parquet(tmp_path / "trials")
    assert len(found) == len(found.drop_duplicates(["run_id", "trial_id"])) == 150
    assert [w.exitcode for w in writers] == [0, 0, 0]
    assert polls == sorted(polls)  # rows are never taken away again
