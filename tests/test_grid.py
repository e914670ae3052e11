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


OLD_GPU = {"gpu_count": 1, "gpu_name": "V100", "gpu_capability": (7, 0)}
GPU = {"gpu_count": 1, "gpu_name": "A100", "gpu_capability": (8, 0)}
FUSED = {
    "device": "gpu",
    "execution": "graph",
    "channels_last": True,
    "fused_optimizer": True,
    "kernels": "fused",
}


@pytest.mark.parametrize(
    ("changes", "machine", "reason"),
    [
        (
            {"device": "gpu"},
            {},
            "the setting needs a GPU, and laptop has 0: drop --device gpu",
        ),
        (
            {"device": "gpu", "num_workers": 2},
            {},
            "the setting needs 2 GPUs, and laptop has 0: lower --num-workers, or drop --device gpu",
        ),
        ({"precision": "tf32"}, {}, "a CPU has no tf32 training: use --precision fp32 or bf16"),
        ({"precision": "fp16"}, {}, "a CPU has no fp16 training: use --precision fp32 or bf16"),
        ({"precision": "tf32", "device": "gpu"}, OLD_GPU, "V100 has no tf32 units: use --precision fp32 or fp16"),
        ({"precision": "bf16", "device": "gpu"}, OLD_GPU, "V100 has no bf16 units: use --precision fp32 or fp16"),
        ({"execution": "graph"}, {}, "a CPU has no CUDA graphs: use --execution eager or compile"),
        (
            {"execution": "compile"},
            {"compiler": False},
            "torch.compile needs a C++ compiler (g++) and Python's headers (python3-dev) on laptop: "
            "install them, or use --execution eager",
        ),
        (FUSED | {"device": "cpu"}, {}, "a CPU has no CUDA graphs: use --execution eager or compile"),
        (
            FUSED | {"device": "cpu", "execution": "compile"},
            {},
            "fused kernels are part of a CPU's eager steps: use --kernels pytorch, or --execution eager",
        ),
        (
            FUSED | {"device": "cpu", "execution": "eager"},
            {"gcc": False},
            "fused kernels need GCC (g++) and Linux on laptop: install them, or use --kernels pytorch",
        ),
        (
            FUSED | {"execution": "eager"},
            GPU,
            "fused kernels are part of a step in one CUDA graph: use --kernels pytorch, or --execution graph",
        ),
        *(
            (
                FUSED | {"execution": "eager"} | changes,
                GPU | {"gpu_count": 2},
                "fused kernels are part of a step in one CUDA graph: use --kernels pytorch",
            )
            for changes in (
                {"num_workers": 2, "cpu_threads": 1},
                {"precision": "fp16"},
            )  # whose steps can only be eager
        ),
        *(
            (
                FUSED | {"execution": "eager", axis: False},
                GPU,
                "fused kernels take channels-last images and Adam's fused kernel, which the recipe blog does not have: "
                "use --kernels pytorch, or --recipe tuned",
            )
            for axis in ("channels_last", "fused_optimizer")
        ),
        (
            FUSED | {"model": "mine:net"},
            GPU,
            "fused kernels are for torchvision's models: use --kernels pytorch",
        ),
        *(
            (
                FUSED,
                GPU | lacks,
                "fused kernels need a GPU of compute capability 8.0 or more, Triton, and compilers (gcc, g++) with "
                "Python's headers (python3-dev) on laptop: install them, or use --kernels pytorch",
            )
            for lacks in ({"compiler": False}, {"triton": False}, {"gpu_capability": (7, 0)})
        ),
        (
            {"device": "gpu", "execution": "compile"},
            GPU | {"triton": False},
            "torch.compile needs a C++ compiler (g++) and Python's headers (python3-dev), for a GPU also Triton and a "
            "C compiler (gcc), on laptop: install them, or use --execution eager",
        ),
        (
            {"cpu_threads": 9},
            {},
            "the setting needs 9 threads, and laptop has processors for 8: lower --cpu-threads",
        ),
        (
            {"cpu_threads": 1, "num_workers": 9},
            {},
            "the setting needs 9 threads, and laptop has processors for 8: lower --num-workers",
        ),
        (
            {"num_workers": 6, "num_nodes": 2},
            {},
            "6 workers with a core each need 2 machines, and this run has 1: lower --num-workers, "
            "or join more machines with --address",
        ),
        (
            {"device": "gpu", "num_workers": 4, "num_nodes": 2},
            {"gpu_count": 2},
            "4 workers with a GPU each need 2 machines, and this run has 1: lower --num-workers, "
            "or join more machines with --address",
        ),
        (
            {"cpu_threads": 2, "num_workers": 5},
            {},
            "the setting needs 10 threads, and laptop has processors for 8: lower --cpu-threads or --num-workers",
        ),
        (
            {"cpu_threads": 4, "num_workers": 3},
            {},
            "the setting needs 12 threads, and laptop has processors for 8: lower --cpu-threads or --num-workers",
        ),
        (
            {"num_workers": 4, "num_nodes": 2},
            {},
            "4 workers need the 2 machines asked for, and this run has 1: lower --num-nodes, or join more machines "
            "with --address",
        ),
    ],
)
def test_what_a_machine_can_not_do_has_a_reason(laptop, changes, machine, reason):
    assert grid.infeasible(make_cell(**changes), replace(laptop, **machine)) == reason


def test_what_a_machine_can_do_has_none(laptop, a100):
    assert grid.infeasible(make_cell(), laptop) is None
    assert grid.infeasible(make_cell(cpu_threads=8), laptop) is None
    assert grid.infeasible(make_cell(precision="bf16"), laptop) is None  # slow there, but right
    assert grid.infeasible(make_cell(device="gpu", precision="fp16"), replace(laptop, **OLD_GPU)) is None
    assert grid.infeasible(make_cell(device="gpu", precision="bf16"), a100) is None
    assert grid.infeasible(make_cell(**FUSED), a100) is None
    assert grid.infeasible(make_cell(**FUSED | {"device": "cpu", "execution": "eager"}), laptop) is None


def test_what_a_mode_can_not_do_is_infeasible_with_the_reason(laptop, a100):
    def why(machine, **changes):
        return grid.infeasible(make_cell(cpu_threads=1, **changes), machine)

    assert "a CPU has no CUDA graphs" in why(laptop, execution="graph")
    assert "takes a single worker" in why(laptop, execution="compile", num_workers=2)
    assert "needs a C++ compiler" in why(replace(laptop, compiler=False), execution="compile")
    assert "loss scaling of fp16" in why(a100, device="gpu", precision="fp16", execution="graph")
    assert why(laptop, execution="compile") is None
    assert why(replace(laptop, triton=False), execution="compile") is None  # which takes Triton on a GPU alone
    assert why(a100, device="gpu", execution="graph") is None
    assert why(a100, device="gpu", execution="compile") is None


@pytest.mark.parametrize(
    ("device", "lacking", "settings", "told"),
    [
        ("cpu", {}, {}, None),
        ("cpu", {"gcc": False}, {}, "fused kernels need GCC (g++) and Linux on a100"),
        ("cpu", {"gcc": False}, {"recipe": ("blog",)}, None),
        ("cpu", {"gcc": False}, {"model": "mine:net"}, None),
        ("cpu", {"compiler": False, "triton": False}, {}, None),
        ("gpu", {"gcc": False}, {}, None),
        *(
            (
                "gpu",
                {name: False},
                {},
                "fused kernels need a GPU of compute capability 8.0 or more, Triton, and compilers (gcc, g++) with "
                "Python's headers (python3-dev) on a100",
            )
            for name in ("compiler", "triton")
        ),
        ("gpu", {"triton": False, "gpu_capability": (7, 0)}, {}, None),
    ],
)
def test_what_a_machine_lacks_for_the_fused_kernels_of_a_recipe(device, lacking, settings, told, a100):
    machine = replace(a100, **lacking)
    asked = Settings(**{"recipe": ("tuned",), "batch_size": (64,), **settings})
    (cell,) = grid.cells(asked, [device], machine)
    assert grid.without_fused(cell, machine) == told


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
