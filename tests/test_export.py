import csv
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import duckdb
import pandas as pd
import polars as pl
import pytest
from mlflow.tracking import MlflowClient
from small_results import BLOG, START, TUNED, row, written
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import rresnet
from results import trials
from results import write as rows_in
from rresnet import command
from rresnet.reporting import trackers


@pytest.fixture
def results(tmp_path):
    rows = [row(BLOG, r, 100.0 + r, peak_memory_bytes=2**40, quality_flags=["steal", "foreign_load"]) for r in range(3)]
    rows += [row(TUNED, r, 200.0, quality_flags=[]) for r in range(2)]
    rows.append(
        row(TUNED, 2, None, status="error", error_message='a "quoted"; text,\nof two lines', quality_flags=None)
    )
    epoch = {"run_id": "r1", "trial_id": "blog0", "seconds": 1.0, "images": 10}
    epochs = [{**epoch, "epoch": e, "train_loss": 2.0 - e, "test_accuracy": 0.5} for e in range(2)]
    return written(tmp_path / "results", rows, epochs)


def test_csv_holds_every_row_and_null_is_empty(results, capsys):
    assert command.main(["export", str(results), "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 6
    assert rows[0]["peak_memory_bytes"] == str(2**40)  # a whole number stays one
    assert rows[0]["quality_flags"] == "steal;foreign_load"
    assert rows[0]["finished_at"].startswith("2026-01-02 03:04:05")
    assert rows[5]["images_per_second"] == ""
    assert rows[5]["error_message"] == 'a "quoted"; text,\nof two lines'


def test_json_holds_the_same_with_null(results, tmp_path):
    out = tmp_path / "x.json"
    assert command.main(["export", str(results), "--format", "json", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())
    assert (len(rows), rows[0]["peak_memory_bytes"], rows[0]["quality_flags"]) == (6, 2**40, ["steal", "foreign_load"])
    assert (rows[5]["images_per_second"], rows[5]["status"]) == (None, "error")
    assert rows[0]["finished_at"] == "2026-01-02T03:04:05+00:00"


def test_other_tables_by_name(results, capsys):
    assert command.main(["export", str(results), "--format", "csv", "--table", "epochs"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [r["train_loss"] for r in rows] == ["2", "1"]
    assert command.main(["export", str(results), "--format", "json", "--table", "losses"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_pandas_polars_and_duckdb_read_the_same(results):
    files = str(results / "trials" / "*.parquet")
    with_pandas = pd.read_parquet(results / "trials")
    with_polars = pl.read_parquet(files)
    ok = with_pandas[with_pandas["status"] == "ok"]
    query = f"from read_parquet('{files}') where status = 'ok'"
    mean = "images_per_second"
    rates = {
        "pandas": ok.groupby("recipe")[mean].mean().to_dict(),
        "polars": dict(with_polars.filter(pl.col("status") == "ok").group_by("recipe").agg(pl.col(mean).mean()).rows()),
        "duckdb": dict(duckdb.sql(f"select recipe, avg({mean}) {query} group by recipe").fetchall()),
    }
    assert list(rates.values()) == [{"blog": pytest.approx(101), "tuned": pytest.approx(200)}] * 3
    statuses = {
        "pandas": with_pandas["status"].value_counts().to_dict(),
        "polars": dict(with_polars["status"].value_counts().rows()),
        "duckdb": dict(duckdb.sql(f"select status, count(*) from read_parquet('{files}') group by status").fetchall()),
    }
    assert list(statuses.values()) == [{"ok": 5, "error": 1}] * 3
    flagged = {
        "pandas": int(ok["quality_flags"].map(lambda flags: "steal" in flags).sum()),
        "polars": with_polars.filter(pl.col("quality_flags").list.contains("steal")).height,
        "duckdb": duckdb.sql(f"select count(*) {query} and list_contains(quality_flags, 'steal')").fetchall()[0][0],
    }
    assert list(flagged.values()) == [3] * 3


def test_tensorboard_reads_its_files(results):
    for _ in range(2):  # a second export replaces the first
        assert command.main(["export", str(results), "--format", "tensorboard"]) == 0
    homes = sorted(path.parent for path in (results / "tensorboard").rglob("events.out.tfevents.*"))
    assert [home.name for home in homes] == [
        f"cpu-blog-batch-8-{BLOG.cell_id[:12]}",
        f"cpu-tuned-batch-8-{TUNED.cell_id[:12]}",
    ]
    read = EventAccumulator(str(homes[0])).Reload()
    rates = read.Scalars("trial/images_per_second")
    assert [(e.step, e.value, e.wall_time) for e in rates] == [(r, 100.0 + r, START.timestamp() + r) for r in range(3)]
    assert [(e.step, e.value) for e in read.Scalars("epoch/train_loss")] == [(0, 2.0), (1, 1.0)]
    assert "trial/peak_memory_bytes" not in EventAccumulator(str(homes[1])).Reload().Tags()["scalars"]  # null: not 0


def test_tensorboards_folders_are_those_of_the_newest_export_and_none_lies_elsewhere(tmp_path):
    pictures = {"dataset": "../../../pictures/a b"}
    for cells in ([pictures], [pictures, {**pictures, "seed": 7}]):  # with the second, names hold the seed
        results = rows_in(
            tmp_path / "deep" / "er" / "results",
            trials(*((cell, [100.0] * 3) for cell in cells), finished_at=START),
        )
        for home in (results / "elsewhere", results / "tensorboard"):
            assert command.main(["export", str(results), "--format", "tensorboard", "--out", str(home)]) == 0
    files = list(tmp_path.rglob("events.out.tfevents.*"))
    assert len(files) == 4
    assert {file.parent.parent.parent for file in files} == {results / "elsewhere", results / "tensorboard"}
    assert len(list((results / "tensorboard" / "r1").iterdir())) == 2


@pytest.mark.filterwarnings("ignore")  # mlflow's own
def test_mlflow_reads_its_store(results, tmp_path, capsys):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert command.main(["export", str(results), "--format", "mlflow", "--out", uri]) == 0
    assert command.main(["export", str(results), "--format", "mlflow", "--out", uri]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 runs added")  # what is there is not added again
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name("rresnet")
    runs = {run.info.run_name: run for run in client.search_runs([found.experiment_id])}
    assert set(runs) == {"cpu blog batch 8", "cpu tuned batch 8"}
    blog = runs["cpu blog batch 8"]
    assert (blog.data.params["recipe"], blog.data.params["batch_size"]) == ("blog", "8")
    assert (blog.data.tags["hostname"], blog.info.status) == ("vm", "FINISHED")
    history = client.get_metric_history(blog.info.run_id, "trial/images_per_second")
    assert sorted((m.step, m.value) for m in history) == [(0, 100.0), (1, 101.0), (2, 102.0)]
    assert "trial/peak_memory_bytes" not in runs["cpu tuned batch 8"].data.metrics
    mean = (100.0 * 101.0 * 102.0) ** (1 / 3)  # a column of its table of runs, by which to sort
    assert blog.data.metrics["setting/images_per_second"] == pytest.approx(mean)
    assert blog.data.metrics["setting/low"] < mean < blog.data.metrics["setting/high"]


def test_failed_trials_are_no_series(results):
    tables = rresnet.read(results)
    assert {s.setting: len(s.points) for s in trackers.tracked_runs(tables)} == {
        # Rate and memory of each repeat; loss, accuracy and seconds of each epoch; the mean rate and its interval.
        "cpu blog batch 8": 3 * 2 + 2 * 3 + 3,
        "cpu tuned batch 8": 2 + 1,
    }


def test_folders_read_together_count_a_trial_once(results, tmp_path):
    later = [row(TUNED, 2, 300.0, finished_at=START + timedelta(seconds=99))]  # run again: this one counts
    stale = [row(BLOG, 0, 1.0, finished_at=START - timedelta(seconds=9))]
    other = [row(BLOG, 0, 50.0, run_id="r2", hostname="laptop")]
    copy = written(tmp_path / "copy", [*later, *stale, *other])
    for folders in ([results, copy], [str(copy), str(results)]):
        trials = rresnet.read(folders).trials
        assert len(trials) == 7
        found = trials.set_index(["run_id", "trial_id"])["images_per_second"]
        assert (found["r1", "tuned2"], found["r1", "blog0"], found["r2", "blog0"]) == (300.0, 100.0, 50.0)
    epochs = rresnet.read([results, copy]).epochs
    assert epochs["epoch"].tolist() == [0, 1]
    with pytest.raises(rresnet.StoreError, match=r"no results in .*nowhere"):
        rresnet.read([results, tmp_path / "nowhere"])
    with pytest.raises(rresnet.StoreError, match="no results folder was named"):
        rresnet.read([])


@pytest.mark.filterwarnings("ignore")  # mlflow's own
def test_a_later_export_completes_what_an_earlier_one_began(results, tmp_path, capsys):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert command.main(["export", str(results), "--format", "mlflow", "--out", uri]) == 0
    more = written(tmp_path / "more", [row(TUNED, repeat, 200.0) for repeat in range(6)])
    assert command.main(["export", str(more), "--format", "mlflow", "--out", uri]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("1 run")
    client = MlflowClient(tracking_uri=uri)
    found = client.search_runs([client.get_experiment_by_name("rresnet").experiment_id])
    (tuned,) = (run for run in found if run.info.run_name.startswith("cpu tuned"))
    history = client.get_metric_history(tuned.info.run_id, "trial/images_per_second")
    assert sorted(metric.step for metric in history) == list(range(6))
    assert tuned.data.metrics["setting/images_per_second"] == pytest.approx(200.0)  # the latest, over all six
    again = [row(TUNED, repeat, 400.0, finished_at=START + timedelta(hours=1)) for repeat in range(6)]  # --retry all
    assert command.main(["export", str(written(tmp_path / "again", again)), "--format", "mlflow", "--out", uri]) == 0
    retried = client.get_run(tuned.info.run_id).data.metrics
    assert (retried["setting/images_per_second"], retried["trial/images_per_second"]) == (pytest.approx(400.0), 400.0)


def test_what_is_no_file_is_written_into_and_a_link_is_followed(results, tmp_path):
    target, link, pipe = tmp_path / "target.csv", tmp_path / "link.csv", tmp_path / "pipe"
    target.write_text("old")
    link.symlink_to(target)
    export = ["export", str(results), "--format", "csv", "--out"]
    assert command.main([*export, str(link)]) == 0
    assert link.is_symlink()
    assert target.read_text().startswith('"run_id"')
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_text)
        assert command.main([*export, str(pipe)]) == 0
        assert read.result(timeout=20) == target.read_text()
    assert pipe.is_fifo()


@pytest.mark.parametrize(("kind", "out"), [("csv", ""), ("csv", "."), ("json", "/"), ("tensorboard", "")])
def test_a_file_without_a_name_is_refused(results, capsys, kind, out):
    assert command.main(["export", str(results), "--format", kind, "--out", out]) == 2
    assert "names no" in capsys.readouterr().err
