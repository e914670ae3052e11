"""What a machine can't run, and what it lacks for it."""

from dataclasses import replace

import pytest
from samples import make_cell

from rresnet import grid
from rresnet.config import Settings

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
