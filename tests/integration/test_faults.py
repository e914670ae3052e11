"""Trials that raise, run out of memory, are killed, crash or hang: each is a row and the sweep goes on."""

import faulty
import pytest
from samples import make_cell

from rresnet import grid

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The rows of trials each of which has a fate of its own."""
    fates = (8, faulty.BREAKS, faulty.KILLED, faulty.HANGS, faulty.TOO_LARGE)
    cells = [make_cell(model="samples:few_layers", batch_size=b, input="resident", cpu_threads=1) for b in fates]
    planned = grid.plan(cells, repeats=1, processes=1, seed=1)
    again = grid.plan([cells[0], cells[4]], repeats=2, processes=2, seed=1)[2:]  # after the storm
    with faulty.swept(planned + again, tmp_path_factory.mktemp("results")) as rows:
        return rows.set_index(["batch_size", "repeat"])


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
    assert "not run: the cell has already run out of memory alone in a fresh process" in later["error_message"]


def test_the_sweep_goes_on_and_measures_after_the_failures(rows):
    for repeat in (0, 1):
        row = rows.loc[(8, repeat)]
        assert row["status"] == "ok"
        assert row["images_per_second"] > 0
        assert row["observed_threads"] == row["cpu_threads"]


def test_what_failed_has_no_speed(rows):
    failed = rows[rows["status"] != "ok"]
    assert failed[["images_per_second", "measured_seconds", "measured_images"]].isna().all().all()
