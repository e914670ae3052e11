"""A trial that is killed leaves its worker group's placement behind: the next one must not wait for it for ever."""

import faulty
import pytest
from samples import make_cell

from rresnet import grid

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def after(tmp_path_factory):
    """The rows by batch size, and what placements are left once all has ended."""
    from ray.util.placement_group import placement_group_table

    cells = [make_cell(batch_size=b, input="resident", cpu_threads=1, num_workers=2) for b in (faulty.LEAKS, 8)]
    planned = sorted(grid.plan(cells, repeats=1, processes=1, seed=1), key=lambda trial: trial.cell.batch_size)
    with faulty.swept(planned, tmp_path_factory.mktemp("results"), limit=180.0) as rows:
        return rows.set_index("batch_size"), [group["state"] for group in placement_group_table().values()]


def test_the_killed_trial_is_a_row(after):
    rows, _ = after
    assert len(rows) == 2
    assert rows.loc[faulty.LEAKS, "status"] == "killed"


def test_the_next_worker_group_gets_its_place(after):
    row = after[0].loc[8]
    assert (row["status"], row["num_workers"]) == ("ok", 2)
    assert row["images_per_second"] > 0
    assert 0 <= row["communication_seconds"] < row["step_seconds"]


def test_no_placement_is_left(after):
    states = after[1]
    assert len(states) >= 2
    assert set(states) == {"REMOVED"}
