"""Strong and weak scaling: which cells."""

from dataclasses import replace

import pytest
from samples import A100, LAPTOP, make_cell

from rresnet import grid
from rresnet.cell import UsageError
from rresnet.experiments import scaling
from rresnet.experiments.scaling import ScalingSettings

FOUR = replace(LAPTOP, cpu_count=4, cpu_cores=4)


def shapes(cells):
    return sorted((c.num_workers, c.batch_size, c.cpu_threads, c.num_nodes) for c in cells)


def test_workers_double_up_to_the_cores_and_share_them_out():
    cells = scaling.cells(ScalingSettings(), ["cpu"], FOUR)
    #                       workers, batch, threads, machines
    assert shapes(cells) == [(1, 64, 4, 1), (2, 32, 2, 1), (2, 64, 2, 1), (4, 16, 1, 1), (4, 64, 1, 1)]
    assert {cell.execution for cell in cells} == {"eager"}


def test_a_single_number_of_workers_is_compared_with_one_worker():
    settings = ScalingSettings(num_workers=(3,), scaling=("weak",))
    assert shapes(scaling.cells(settings, ["cpu"], FOUR)) == [(1, 64, 4, 1), (3, 64, 1, 1)]


def test_on_gpus_there_is_a_worker_for_each():
    four = replace(A100, gpu_count=4)
    cells = scaling.cells(ScalingSettings(scaling=("weak",)), ["gpu"], four)
    assert [c.num_workers for c in cells] == [1, 2, 4]
    assert {(c.batch_size, c.execution) for c in cells} == {(64, "eager")}


def test_workers_are_spread_over_machines_as_asked_and_one_worker_stays_alone():
    settings = ScalingSettings(num_workers=(1, 2, 4), num_nodes=(1, 2), scaling=("weak",))
    assert shapes(scaling.cells(settings, ["cpu"], FOUR)) == [
        (1, 64, 4, 1),
        (2, 64, 2, 1),
        (2, 64, 4, 2),
        (4, 64, 1, 1),
        (4, 64, 2, 2),
    ]


def test_more_workers_than_a_machine_has_room_for_go_to_as_few_machines_as_hold_them():
    assert [grid.fewest_nodes("cpu", n, FOUR) for n in (1, 4, 6, 8, 9)] == [1, 1, 2, 2, 3]
    assert repr(grid.fewest_nodes("cpu", 2**31 - 1, FOUR)) == "2147483647"  # a prime, and no 2147483647.0
    two = make_cell(num_workers=8, num_nodes=2, cpu_threads=1)
    assert grid.infeasible(two, FOUR, machines=2) is None
    assert "8 workers with a core each need 2 machines, and this run has 1" in grid.infeasible(two, FOUR, machines=1)


def test_one_worker_alone_is_nothing_to_compare():
    with pytest.raises(UsageError, match="--num-workers 1 is what the others are compared with: give others"):
        scaling.cells(ScalingSettings(num_workers=(1,)), ["cpu"], FOUR)


def test_a_batch_that_can_not_be_shared_out_is_refused():
    with pytest.raises(UsageError, match="--batch-size 63 can't be shared out among 2 workers"):
        scaling.cells(ScalingSettings(batch_size=(63,)), ["cpu"], FOUR)
