"""Trials that raise, run out of memory, are killed, crash or hang: each is a row and the sweep goes on."""

import os
from pathlib import Path

import faulty
import pandas as pd
import pytest
import ray
from rich.console import Console
from samples import make_cell

from rresnet import data, grid, hardware
from rresnet.config import How
from rresnet.progress import Progress
from rresnet.runner import cluster
from rresnet.runner.sweep import Sweep
from rresnet.tables import store
from rresnet.tables.store import Writer

pytestmark = pytest.mark.integration
LIMIT = 30.0  # seconds; other tests run beside this one


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # for the trial processes, which import the trainable
    here = hardware.probe()
    fates = (8, faulty.BREAKS, faulty.KILLED, faulty.HANGS, faulty.TOO_LARGE)
    cells = [make_cell(batch_size=b, input="resident", cpu_threads=1) for b in fates]
    planned = grid.plan(cells, repeats=1, processes=1, seed=1)
    again = grid.plan([cells[0], cells[4]], repeats=2, processes=2, seed=1)[2:]  # after the storm
    images = data.load("fashion-mnist-12k", image_size=32)
    run = store.Run(run_id="faults", experiment="test", name="faults", plan_id="p", planned=7, started_at="2026-01-01")
    console = Console(file=(results / "progress").open("w"))
    with cluster.connect(None, here) as found, Writer(results, run) as writer, Progress(console, 7) as progress:
        sweep = Sweep(
            run=run,
            cluster=found,
            data=ray.put(images),
            how=How(seconds=0.05, timeout_seconds=LIMIT),
            keep=lambda name, content: None,
            write=writer.write,
            progress=progress,
            trainable=faulty.trial,
        )
        sweep.execute(planned + again)
    console.file.close()
    del os.environ["PYTHONPATH"]
    return pd.read_parquet(results / "trials").set_index(["batch_size", "repeat"])


def test_every_planned_trial_has_one_row(rows):
    assert len(rows) == 7
    assert rows.index.is_unique
    assert rows["trial_id"].is_unique


def test_an_exception_is_an_error_with_its_class_and_text(rows):
    row = rows.loc[(faulty.BREAKS, 0)]
    assert (row["status"], row["error_type"], row["error_message"]) == ("error", "ValueError", "the loop broke")
    assert 'raise ValueError("the loop broke")' in row["output_tail"]


def test_a_process_that_dies_is_killed(rows):
    assert rows.loc[(faulty.KILLED, 0), "status"] == "killed"
    assert "has died" in rows.loc[(faulty.KILLED, 0), "error_message"]


def test_a_hang_is_ended_at_its_limit(rows):
    row = rows.loc[(faulty.HANGS, 0)]
    assert (row["status"], row["error_message"]) == ("timeout", "still running after 30 s (--timeout-seconds)")
    assert "Timeout" in row["output_tail"]  # the watchdog's traceback, which says where it hung
    assert "in visit" in row["output_tail"]


def test_out_of_memory_is_believed_once_it_happened_alone(rows):
    row = rows.loc[(faulty.TOO_LARGE, 0)]
    assert row["status"] == "out_of_memory"
    assert "can't allocate memory" in row["error_message"]
    later = rows.loc[(faulty.TOO_LARGE, 1)]
    assert later["status"] == "out_of_memory"
    assert "not run: the cell ran out of memory alone in a fresh process before" in later["error_message"]


def test_the_sweep_goes_on_and_measures_after_the_failures(rows):
    for repeat in (0, 1):
        row = rows.loc[(8, repeat)]
        assert row["status"] == "ok"
        assert row["images_per_second"] > 0
        assert row["observed_threads"] == row["cpu_threads"]


def test_what_failed_has_no_speed(rows):
    failed = rows[rows["status"] != "ok"]
    assert failed[["images_per_second", "measured_seconds", "measured_images"]].isna().all().all()
