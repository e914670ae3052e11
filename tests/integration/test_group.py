"""A worker group stays up for the trials that need the same one, and a trial that fails ends it."""

import os

import faulty
import pytest
from samples import make_cell

from rresnet import grid

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two workers need two processors"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The rows of two cells and of one in which the second worker fails, and how many worker groups there were."""
    from ray.util.placement_group import placement_group_table

    common = {"input": "resident", "cpu_threads": 1, "num_workers": 2}
    fine = [make_cell(batch_size=size, **common) for size in (8, 16)]
    broken = make_cell(model="faulty:for_the_first_worker", **common)
    planned = grid.plan(fine, repeats=2, processes=1, seed=1)
    planned[2:2] = grid.plan([broken], repeats=1, processes=1, seed=1)
    with faulty.swept(planned, tmp_path_factory.mktemp("results")) as rows:
        bundles = [list(group["bundles"].values()) for group in placement_group_table().values()]
        yield rows, sum(len(of_group) == 2 for of_group in bundles)


def test_each_trial_is_a_row_with_what_its_workers_measured(trained):
    rows, _ = trained
    ok = rows[rows["status"] == "ok"]
    assert sorted(zip(ok["batch_size"], ok["repeat"], strict=True)) == [(8, 0), (8, 1), (16, 0), (16, 1)]
    assert (ok["images_per_second"] > 0).all()
    assert (ok["observed_threads"] == 1).all()
    assert (ok["communication_seconds"] >= 0).all()


def test_what_a_worker_raises_is_the_trials_error_and_the_next_trials_have_a_new_group(trained):
    rows, groups = trained
    (failed,) = rows[rows["status"] != "ok"].to_dict("records")
    assert (failed["status"], failed["error_type"]) == ("error", "ValueError")
    assert failed["error_message"] == "not for this worker"
    assert groups == 2  # for five trials
