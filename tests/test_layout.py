"""Which workers a group has, and which of them a cell takes."""

import pytest
from samples import make_cell

from rresnet.runner.layout import Layout, layouts, members, placement

NODES = ("a", "b", "c")


def cells_of(*several, device="cpu"):
    """Cells of so many workers, nodes and threads of each."""
    return [make_cell(device=device, num_workers=n, num_nodes=k, cpu_threads=t) for n, k, t in several]


def test_cells_of_one_worker_take_no_group():
    assert layouts([make_cell(), make_cell(device="gpu")], NODES) == {}


def test_workers_are_spread_evenly_over_the_first_nodes():
    (four,) = cells_of((4, 2, 1))
    assert placement(four, NODES) == ("a", "a", "b", "b")


@pytest.mark.parametrize(
    ("several", "nodes", "cores"),
    [
        ([(2, 1, 4)], "aa", 4),
        ([(2, 1, 4), (4, 1, 2)], "aaaa", 2),  # the smaller cell takes two of the larger one's
        ([(4, 1, 2), (2, 2, 8)], "aaaab", 2),  # most on the first node, and one on the second
        ([(6, 3, 3), (4, 1, 2)], "aaaabbcc", 2),
        ([(2, 1, 1), (2, 1, 4)], "aa", 4),
    ],
)
def test_a_group_has_as_many_workers_on_a_node_as_any_of_its_cells_takes(several, nodes, cores):
    for given in (several, several[::-1]):
        assert layouts(cells_of(*given), NODES) == {"cpu": Layout(device="cpu", nodes=tuple(nodes), cores=cores)}


def test_cores_are_set_aside_for_one_of_two_groups():
    on_gpus = cells_of((4, 1, 2), device="gpu")
    assert layouts(on_gpus, NODES)["gpu"].cores == 2
    both = layouts([*on_gpus, *cells_of((2, 1, 8))], NODES)
    assert {kind: (len(those.nodes), those.cores) for kind, those in both.items()} == {"cpu": (2, 8), "gpu": (4, 0)}


def test_a_worker_on_a_gpu_leaves_a_part_of_it_to_the_trial_process():
    assert Layout(device="gpu", nodes=("a",), cores=0).each == {"CPU": 0.0, "GPU": 0.99}
    assert Layout(device="cpu", nodes=("a",), cores=4).each == {"CPU": 4.0}


@pytest.mark.parametrize(
    ("nodes", "of_workers", "ranks"),
    [
        ("aa", "aaaa", [0, 1]),
        ("ab", "aabb", [0, 2]),
        ("aab", "baba", [0, 1, 3]),  # Ray Train numbers the workers as it likes
        ("aabb", "abab", [0, 1, 2, 3]),
    ],
)
def test_a_cell_takes_the_first_workers_on_each_of_its_nodes(nodes, of_workers, ranks):
    assert members(nodes, of_workers) == ranks
