from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import make_cell

from rresnet import grid
from rresnet.config import Settings


def test_the_grid_is_the_product_of_its_axes(laptop):
    settings = Settings(batch_size=(32, 64, 128), recipe=("blog", "tuned"))
    cells = grid.cells(settings, ["cpu"], laptop)
    assert len(cells) == 6
    assert {(c.recipe, c.batch_size) for c in cells} == {(r, b) for r in ("blog", "tuned") for b in (32, 64, 128)}


def test_blog_is_the_script_and_tuned_is_what_the_device_can(laptop, a100):
    cpu = grid.blog("cpu", laptop)
    assert (cpu.precision, cpu.input, cpu.execution, cpu.channels_last) == ("fp32", "dataloader", "eager", False)
    assert grid.blog("gpu", a100).precision == "tf32"  # PyTorch's default for convolutions, recorded as such
    assert grid.tuned("cpu", laptop).precision == "fp32"  # no bf16 units
    assert grid.tuned("cpu", a100).precision == "bf16"
    assert grid.tuned("gpu", a100).precision == "bf16"
    assert grid.tuned("cpu", laptop).input == "resident"


def test_overridden_precision_is_an_axis(laptop):
    cells = grid.cells(Settings(batch_size=(64,), recipe=("tuned",), precision=("fp32", "bf16")), ["cpu"], laptop)
    assert [c.precision for c in cells] == ["fp32", "bf16"]


def test_threads_are_the_cores_divided_by_the_workers(laptop):
    cells = grid.cells(Settings(batch_size=(64,), recipe=("blog",), num_workers=(1, 2, 4)), ["cpu"], laptop)
    assert [c.cpu_threads for c in cells] == [4, 2, 1]
    asked = grid.cells(Settings(batch_size=(64,), recipe=("blog",), cpu_threads=3), ["cpu"], laptop)
    assert [c.cpu_threads for c in asked] == [3]


def test_aa_plans_every_cell_twice(laptop):
    cells = grid.cells(Settings(batch_size=(64,), recipe=("blog",), aa=True), ["cpu"], laptop)
    assert [c.copy for c in cells] == [0, 1]
    assert cells[0].cell_id != cells[1].cell_id


def test_repeats_are_outermost_and_processes_take_consecutive_ones():
    cells = [make_cell(batch_size=b) for b in (1, 2, 3)]
    trials = grid.plan(cells, repeats=12, processes=3, seed=1)
    assert [t.repeat for t in trials] == [r for r in range(12) for _ in range(3)]
    assert Counter(t.process for t in trials) == {0: 12, 1: 12, 2: 12}
    assert [t.process for t in trials if t.cell.batch_size == 1] == [0] * 4 + [1] * 4 + [2] * 4


def test_more_processes_than_repeats_gives_each_repeat_its_own():
    assert [t.process for t in grid.plan([make_cell()], repeats=2, processes=5, seed=1)] == [0, 1]


def test_the_seed_alone_decides_the_order():
    cells = [make_cell(batch_size=b) for b in range(1, 7)]
    order = [t.trial_id for t in grid.plan(cells, repeats=4, processes=1, seed=1)]
    assert order == [t.trial_id for t in grid.plan(cells, repeats=4, processes=1, seed=1)]
    assert order != [t.trial_id for t in grid.plan(cells, repeats=4, processes=1, seed=2)]
    first, second = (
        [t.cell.batch_size for t in grid.plan(cells, repeats=2, processes=1, seed=1)][i : i + 6] for i in (0, 6)
    )
    assert first != second  # no cell always follows the same neighbour


@given(st.integers(1, 8), st.integers(1, 30), st.integers(1, 40), st.integers(0, 2**31))
def test_every_cell_is_planned_once_in_every_repeat(count, repeats, processes, seed):
    cells = [make_cell(batch_size=b + 1) for b in range(count)]
    trials = grid.plan(cells, repeats=repeats, processes=processes, seed=seed)
    assert len({t.trial_id for t in trials}) == len(trials) == count * repeats
    assert [t.process for t in trials] == sorted(t.process for t in trials)
    assert len({t.process for t in trials}) == min(processes, repeats)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": "gpu"}, "1 GPU(s) asked for, 0 on laptop"),
        ({"precision": "tf32"}, "a CPU has no tf32 training"),
        ({"precision": "fp16"}, "a CPU has no fp16 training"),
        ({"cpu_threads": 9}, "9 threads asked for, 8 processors on laptop"),
        ({"cpu_threads": 4, "num_workers": 3}, "12 threads asked for, 8 processors on laptop"),
    ],
)
def test_what_a_machine_can_not_do_has_a_reason(laptop, changes, reason):
    assert reason in grid.infeasible(make_cell(**changes), laptop)


def test_what_a_machine_can_do_has_none(laptop, a100):
    assert grid.infeasible(make_cell(), laptop) is None
    assert grid.infeasible(make_cell(device="gpu", precision="bf16"), a100) is None


def test_what_a_mode_can_not_do_is_infeasible_with_the_reason(laptop, a100):
    def why(machine, **changes):
        return grid.infeasible(make_cell(cpu_threads=1, **changes), machine)

    assert "a CPU has no CUDA graphs" in why(laptop, execution="graph")
    assert "one worker's" in why(laptop, execution="compile", num_workers=2)
    assert "needs a C++ compiler" in why(replace(laptop, compiler=False), execution="compile")
    assert "loss scaling of fp16" in why(a100, device="gpu", precision="fp16", execution="graph")
    assert why(laptop, execution="compile") is None
    assert why(a100, device="gpu", execution="graph") is None
    assert why(a100, device="gpu", execution="compile") is None


def test_tuned_on_a_gpu_is_a_graph_where_it_can_be(a100):
    def executions(**changes):
        return {c.execution for c in grid.cells(Settings(recipe=("tuned",), **changes), ["gpu"], a100)}

    assert executions() == {"graph"}
    assert executions(num_workers=(2,)) == {"eager"}
    assert executions(precision=("fp16",)) == {"eager"}
    assert executions(execution=("compile",)) == {"compile"}
