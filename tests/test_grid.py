from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import make_cell

from rresnet import grid
from rresnet.cell import Axes, Cell, UsageError
from rresnet.config import Settings


def test_the_grid_is_the_product_of_its_axes(laptop):
    settings = Settings(batch_size=(32, 64, 128), recipe=("blog", "tuned"))
    cells = grid.cells(settings, ["cpu"], laptop)
    assert len(cells) == 6
    assert {(c.recipe, c.batch_size) for c in cells} == {(r, b) for r in ("blog", "tuned") for b in (32, 64, 128)}


def test_blog_is_the_script_as_written(laptop, a100):
    written = Axes(
        precision="fp32",
        input="dataloader",
        execution="eager",
        channels_last=False,
        fused_optimizer=False,
        pointwise="conv",
        small_maps="conv",
    )
    assert grid.blog("cpu", laptop) == grid.blog("cpu", a100) == written
    assert grid.blog("gpu", a100) == replace(written, precision="tf32")  # PyTorch's default for convolutions there
    assert grid.blog("gpu", replace(a100, gpu_capability=(7, 0))) == written  # a V100 has no TF32


def test_tuned_is_what_the_device_can(laptop, a100):
    cpu = Axes(
        precision="fp32",  # the laptop has no bf16 units
        input="resident",
        execution="eager",
        channels_last=True,
        fused_optimizer=True,
        pointwise="linear",
        small_maps="linear",
        kernels="fused",
    )
    assert grid.tuned("cpu", laptop) == cpu
    assert grid.tuned("cpu", replace(laptop, gcc=False)) == replace(cpu, kernels="pytorch")
    volta = replace(a100, gpu_capability=(7, 0))  # has no bf16 units; its machine's CPU has
    assert grid.tuned("cpu", a100) == grid.tuned("cpu", volta) == replace(cpu, precision="bf16")
    gpu = replace(cpu, execution="graph", small_maps="conv", cudnn_benchmark=True, kernels="pytorch")
    assert grid.tuned("gpu", a100) == replace(gpu, precision="bf16", kernels="fused")
    assert grid.tuned("gpu", volta) == gpu
    for lacks in ({"compiler": False}, {"triton": False}):  # what makes the kernels
        assert grid.tuned("gpu", replace(a100, **lacks)) == replace(gpu, precision="bf16")


def test_a_cell_is_what_the_settings_say(laptop):
    asked = {"model": "vgg11", "dataset": "mnist", "image_size": 64, "seed": 7, "epochs": 2}
    settings = Settings(recipe=("blog",), batch_size=(16,), cpu_threads=3, **asked)
    (found,) = grid.cells(settings, ["cpu"], laptop)
    assert found == Cell(device="cpu", recipe="blog", batch_size=16, num_workers=1, cpu_threads=3, **asked)
    three = replace(settings, cpu_threads=None, num_workers=(3,), num_nodes=(3,), aa=True)
    _, spread = grid.cells(three, ["cpu"], laptop)
    assert (spread.num_workers, spread.num_nodes, spread.cpu_threads, spread.copy) == (3, 3, 4, 1)
    (together,) = grid.cells(replace(three, num_nodes=(1,), aa=False), ["cpu"], laptop)
    assert together.cpu_threads == 1  # 4 cores, whole ones


@pytest.mark.parametrize(
    ("device", "workers", "nodes"),
    [("cpu", 1, 1), ("cpu", 4, 1), ("cpu", 6, 2), ("cpu", 8, 2), ("cpu", 5, 5), ("cpu", 9, 3),
     ("gpu", 1, 1), ("gpu", 2, 1), ("gpu", 4, 2), ("gpu", 3, 3)],
)  # fmt: skip
def test_workers_are_on_as_few_machines_as_have_a_core_or_gpu_for_each(laptop, device, workers, nodes):
    machine = replace(laptop, gpu_count=2)  # and 4 cores
    assert grid.fewest_nodes(device, workers, machine) == nodes
    (only,) = grid.cells(Settings(num_workers=(workers,), recipe=("blog",), batch_size=(8,)), [device], machine)
    assert only.num_nodes == nodes


def test_a_device_that_is_not_there_is_taken_for_one(laptop):
    assert grid.fewest_nodes("gpu", 2, laptop) == 2


def test_workers_that_can_not_be_spread_so_are_left_out(laptop):
    settings = Settings(num_workers=(1, 2, 4), num_nodes=(4, 2, 1), recipe=("blog",), batch_size=(8,))
    found = [(c.num_workers, c.num_nodes) for c in grid.cells(settings, ["cpu"], laptop)]
    assert found == [(1, 1), (2, 2), (2, 1), (4, 4), (4, 2), (4, 1)]


def test_a_recipe_that_is_none_is_told_with_those_that_are():
    with pytest.raises(
        UsageError, match=r"^--recipe tunde is not a recipe: did you mean tuned\? Recipes are blog, tuned"
    ):
        grid.recipe("tunde")


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
    assert {c.copy for c in grid.cells(Settings(), ["cpu"], laptop)} == {0}
    assert cells[0].cell_id != cells[1].cell_id


def test_repeats_are_outermost_and_processes_take_consecutive_ones():
    cells = [make_cell(batch_size=b) for b in (1, 2, 3)]
    trials = grid.plan(cells, repeats=12, processes=3, seed=1)
    assert [t.repeat for t in trials] == [r for r in range(12) for _ in range(3)]
    assert Counter(t.process for t in trials) == {0: 12, 1: 12, 2: 12}
    assert [t.process for t in trials if t.cell.batch_size == 1] == [0] * 4 + [1] * 4 + [2] * 4


def test_more_processes_than_repeats_gives_each_repeat_its_own():
    processes = Settings(repeats=2, processes=5).processes_planned
    assert [t.process for t in grid.plan([make_cell()], repeats=2, processes=processes, seed=1)] == [0, 1]


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
    planned = Settings(repeats=repeats, processes=processes).processes_planned
    trials = grid.plan(cells, repeats=repeats, processes=planned, seed=seed)
    assert len({t.trial_id for t in trials}) == len(trials) == count * repeats
    assert [t.process for t in trials] == sorted(t.process for t in trials)
    assert len({t.process for t in trials}) == min(processes, repeats)


def test_tuned_on_a_gpu_is_a_graph_where_it_can_be(a100):
    def executions(**changes):
        return {c.execution for c in grid.cells(Settings(recipe=("tuned",), **changes), ["gpu"], a100)}

    def kernels(machine=a100, **changes):
        return {c.kernels for c in grid.cells(Settings(recipe=("tuned",), **changes), ["gpu"], machine)}

    assert kernels() == {"fused"}
    for left_out in ({"execution": ("eager", "compile")}, {"num_workers": (2,)}, {"model": "mine:net"}):
        assert kernels(**left_out) == {"pytorch"}
    assert kernels(kernels=("pytorch", "fused"), execution=("eager",)) == {"pytorch", "fused"}  # as was asked
    assert executions() == {"graph"}
    assert executions(num_workers=(2,)) == {"eager"}
    assert executions(precision=("fp16",)) == {"eager"}
    assert executions(execution=("compile",)) == {"compile"}


def test_an_execution_that_is_asked_for_is_not_given_up_for_one_that_can_run(laptop):
    asked = Settings(recipe=("tuned",), batch_size=(64,), num_workers=(2,), execution=("compile",))
    (cell,) = grid.cells(asked, ["cpu"], laptop)
    assert cell.execution == "compile"
    assert "a compile step takes a single worker" in grid.infeasible(cell, laptop)
