"""The end of a run: its rows are counted, and judged once more."""

import shutil

import pyarrow.parquet as pq
import pytest
from stored import make_run, rows_of_trial

from rresnet.tables import reading, runs, store
from rresnet.tables.measurement import SCHEMAS
from rresnet.tables.place import StoreError
from rresnet.tables.store import Writer


@pytest.mark.parametrize("per_part", [1, 2, 256])
def test_the_end_of_a_run_may_flag_rows_and_counts_them(tmp_path, monkeypatch, per_part):
    monkeypatch.setattr(store, "TRIALS_PER_PART", per_part)
    run = make_run()
    with Writer(tmp_path, run) as writer:
        for repeat in range(3):
            writer.write(*rows_of_trial(run, repeat, quality_flags=["steal"]))
            writer.flush()
    ids = reading.read_tables(tmp_path)["trials"]["trial_id"].to_pylist()
    writer.finish("2026-01-01T01:00:00+00:00", {ids[1]}, "machine_changed")
    flags = reading.read_tables(tmp_path)["trials"]["quality_flags"].to_pylist()
    assert flags == [["steal"], ["steal", "machine_changed"], ["steal"]]
    assert runs.read_runs(tmp_path)[0].planned == 3
    for file in (tmp_path / "trials").glob("*.parquet"):
        schema = pq.read_schema(file)
        assert schema.field("quality_flags") == SCHEMAS["trials"].field("quality_flags")
        assert schema.field("step_seconds").metadata == SCHEMAS["trials"].field("step_seconds").metadata


@pytest.mark.parametrize("gone", ["trials/r1.parquet", "."])
def test_rows_that_somebody_has_removed_are_missed_and_the_run_can_be_continued(tmp_path, monkeypatch, gone):
    monkeypatch.setattr(store, "TRIALS_PER_PART", 2)
    run, results = make_run(), tmp_path / "results"
    with Writer(results, run) as writer:
        for repeat in range(3):
            writer.write(*rows_of_trial(run, repeat))
            writer.flush()
            if repeat == 1:  # the first part is closed
                (results / gone).unlink() if gone != "." else shutil.rmtree(results)
        with pytest.raises(StoreError, match=r"2 of 3 trials of run r1 have lost their rows in .*the same command"):
            writer.finish("2026-01-01T01:00:00+00:00")
    (found,) = runs.read_runs(results)
    assert (found.run_id, found.finished_at) == ("r1", None)
    with Writer(results, found) as writer:
        for repeat in range(2):
            writer.write(*rows_of_trial(run, repeat))
    writer.finish("2026-01-01T01:00:00+00:00")
    assert runs.read_runs(results)[0].planned == 3


def test_a_run_that_is_gone_on_with_is_judged_anew(tmp_path):
    run = make_run()
    with Writer(tmp_path, run) as writer:
        for repeat, flags in enumerate([["steal"], ["steal"], [], None]):
            writer.write(*rows_of_trial(run, repeat, quality_flags=flags))
    ids = [rows_of_trial(run, repeat)[0] for repeat in range(4)]

    def judged(*flagged):
        with Writer(tmp_path, run) as writer:
            writer.finish("2026-01-01T01:00:00+00:00", {ids[repeat] for repeat in flagged}, "machine_changed")
        found = reading.read_tables(tmp_path)["trials"].to_pylist()
        return [row["quality_flags"] for row in sorted(found, key=lambda row: row["repeat"])]

    assert judged(0, 2) == [["steal", "machine_changed"], ["steal"], ["machine_changed"], None]
    assert judged(1, 2) == [["steal"], ["steal", "machine_changed"], ["machine_changed"], None]
    assert judged() == [["steal"], ["steal"], [], None]
