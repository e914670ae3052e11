"""From settings to planned trials: pure functions, the same answer on every machine."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

from rresnet.cell import AXES, FLAGGED, Axes, Cell, Device, Trial, UsageError, nearest
from rresnet.config import AUTO, Settings
from rresnet.hardware import Hardware

AS_WRITTEN = Axes()  # the blog's script: what PyTorch does unless told otherwise


def blog(device: Device, hardware: Hardware) -> Axes:
    """The blog post's script as written, with PyTorch's defaults.

    On Ampere and later, convolutions run in TF32.
    """
    return replace(AS_WRITTEN, precision="tf32") if device == "gpu" and hardware.gpu_bf16 else AS_WRITTEN


def tuned(device: Device, hardware: Hardware) -> Axes:
    """The fastest settings known for the device, with the same network, batches, loss and optimizer."""
    bf16 = hardware.gpu_bf16 if device == "gpu" else hardware.cpu_bf16
    return Axes(
        precision="bf16" if bf16 else "fp32",
        input="resident",
        execution="graph" if device == "gpu" else "eager",
        channels_last=True,
        fused_optimizer=True,
        pointwise="linear",
        small_maps="linear" if device == "cpu" else "conv",
        cudnn_benchmark=device == "gpu",
        kernels="fused" if _makes_kernels(device, hardware) else "pytorch",
    )


# The first paragraph of a recipe's docstring is its help.
RECIPES: dict[str, Callable[[Device, Hardware], Axes]] = {
    "blog": blog,
    "tuned": tuned,
}

# The ladder from blog to tuned, in the order of its changes; where the two agree on a device, there is no rung.
# cuDNN keeps the kernels that it has found for a layout and precision, however it looked for them, so its search is
# switched on together with the layout: as a rung of its own it would use kernels that another rung of the same process
# has found.
_FIRST: tuple[tuple[str, ...], ...] = (
    ("input",), ("channels_last", "cudnn_benchmark"), ("pointwise",), ("small_maps",), ("precision",),
    ("fused_optimizer",), ("execution",),
)  # fmt: skip
RUNGS = (*_FIRST, *((axis,) for axis in AXES if axis not in sum(_FIRST, ())))


def cells(settings: Settings, devices: Sequence[Device], hardware: Hardware) -> list[Cell]:
    """The product of the settings' axes on `devices`, each recipe resolved for `hardware`; no cell twice."""
    found = {}
    assert settings.batch_size != AUTO, "batch sizes are found first"
    copies = (0, 1) if settings.aa else (0,)
    given = [getattr(settings, axis) or (None,) for axis in FLAGGED]
    for device, name, batch_size, num_workers in product(
        devices, settings.recipe, settings.batch_size, settings.num_workers
    ):
        resolved = recipe(name)(device, hardware)
        spreads = settings.num_nodes or (fewest_nodes(device, num_workers, hardware),)
        for *values, num_nodes, copy in product(*given, spreads, copies):
            if num_workers % num_nodes:
                continue  # 1 worker on 2 machines, say: other pairs of the values are meant
            asked = {axis: value for axis, value in zip(FLAGGED, values, strict=True) if value is not None}
            chosen = replace(resolved, **asked)
            # A recipe never asks for what can't run: a step that is not eager takes a single worker, and not fp16;
            # and fused kernels (below) take what only some steps have.
            if "execution" not in asked and (num_workers > 1 or chosen.precision == "fp16"):
                chosen = replace(chosen, execution="eager")
            one = Cell(
                device=device,
                recipe=name,
                **vars(chosen),
                model=settings.model,
                dataset=settings.dataset,
                image_size=settings.image_size,
                batch_size=batch_size,
                num_workers=num_workers,
                num_nodes=num_nodes,
                cpu_threads=settings.cpu_threads or max(1, hardware.cpu_cores * num_nodes // num_workers),
                seed=settings.seed,
                epochs=settings.epochs,
                copy=copy,
            )
            if "kernels" not in asked and _unfusable(one):
                one = replace(one, kernels="pytorch")
            found[one.cell_id] = one
    return list(found.values())


def recipe(name: str) -> Callable[[Device, Hardware], Axes]:
    """The recipe of that name. Raises UsageError where there is none."""
    if name not in RECIPES:
        raise UsageError(f"--recipe {name} is not a recipe: {nearest(name, RECIPES)}Recipes are {', '.join(RECIPES)}")
    return RECIPES[name]


def fewest_nodes(device: Device, num_workers: int, hardware: Hardware) -> int:
    """The fewest machines like `hardware` with a GPU, or a core, for each worker, and equally many workers each."""
    each = max(1, hardware.gpu_count if device == "gpu" else hardware.cpu_cores)
    below_root = [n for n in range(1, math.isqrt(num_workers) + 1) if num_workers % n == 0]
    return min(n for one in below_root for n in (one, num_workers // one) if num_workers // n <= each)


def plan(cells: Sequence[Cell], *, repeats: int, processes: int, seed: int) -> list[Trial]:
    """Every cell once in each repeat, in the order they run.

    Repeats are outermost, so that slow drift of the machine affects every cell alike; the order within a repeat is
    shuffled by the seed, so that no cell always follows the same neighbour. Consecutive repeats share a trial process;
    there are at most as many processes as repeats (`Settings.processes_planned`).
    """
    process_of = [repeat * processes // repeats for repeat in range(repeats)]
    return [trial for repeat, process in enumerate(process_of) for trial in _repeat(cells, repeat, process, seed)]


def more(cells: Sequence[Cell], extension: int, *, repeats: int, processes: int, seed: int) -> list[Trial]:
    """Return one extension of the plan of `repeats` and `processes`, numbered from 0; each takes one more process."""
    length = repeats // processes
    first = repeats + extension * length
    return [trial for i in range(length) for trial in _repeat(cells, first + i, processes + extension, seed)]


def _repeat(cells: Sequence[Cell], repeat: int, process: int, seed: int) -> list[Trial]:
    order = list(cells)
    random.Random(f"{seed}/{repeat}").shuffle(order)
    return [Trial(cell=cell, repeat=repeat, process=process) for cell in order]


def _makes_kernels(device: Device, hardware: Hardware) -> bool:
    return hardware.gpu_triton if device == "gpu" else hardware.gcc


def _kernels_need(device: Device, hardware: Hardware) -> str:
    compilers = "compilers (gcc, g++) with Python's headers (python3-dev)"
    of_gpu = f"a GPU of compute capability 8.0 or more, Triton, and {compilers}"
    return f"fused kernels need {of_gpu if device == 'gpu' else 'GCC (g++) and Linux'} on {hardware.hostname}"


def without_fused(cell: Cell, hardware: Hardware) -> str | None:
    """What the machine lacks for the fused kernels that the cell's recipe would have elsewhere; None if nothing."""
    elsewhere = recipe(cell.recipe)(cell.device, replace(hardware, gcc=True, compiler=True, triton=True))
    lacking = elsewhere.kernels == "fused" and not _makes_kernels(cell.device, hardware)
    return _kernels_need(cell.device, hardware) if lacking and not _unfusable(cell) else None


def _unfusable(cell: Cell) -> str | None:
    """Why the cell's step can't have fused kernels, on any machine, or None."""
    if ":" in cell.model:
        return "fused kernels are for torchvision's models: use --kernels pytorch"
    if not (cell.channels_last and cell.fused_optimizer):
        return (
            f"fused kernels take channels-last images and Adam's fused kernel, which the recipe {cell.recipe} does not "
            "have: use --kernels pytorch, or --recipe tuned"
        )
    if cell.device == "cpu" and cell.execution != "eager":
        return "fused kernels are part of a CPU's eager steps: use --kernels pytorch, or --execution eager"
    if cell.device == "gpu" and cell.execution != "graph":
        or_graph = "" if cell.num_workers > 1 or cell.precision == "fp16" else ", or --execution graph"
        return f"fused kernels are part of a step in one CUDA graph: use --kernels pytorch{or_graph}"
    return None


def infeasible(cell: Cell, hardware: Hardware, machines: int = 1) -> str | None:
    """Why so many machines like `hardware` can't run `cell`, or None. Asked before anything starts or waits."""
    if cell.num_nodes > machines and cell.num_nodes == fewest_nodes(cell.device, cell.num_workers, hardware):
        unit = "GPU" if cell.device == "gpu" else "core"
        asked = (
            f"{cell.num_workers} workers with a {unit} each need {cell.num_nodes} machines, and this run has {machines}"
        )
        return f"{asked}: lower --num-workers, or join more machines with --address"
    if cell.num_nodes > machines:
        asked = f"{cell.num_workers} workers need the {cell.num_nodes} machines asked for, and this run has {machines}"
        return f"{asked}: lower --num-nodes, or join more machines with --address"
    if cell.device == "gpu" and hardware.gpu_count < cell.workers_per_node:
        needed = "a GPU" if cell.workers_per_node == 1 else f"{cell.workers_per_node} GPUs"
        asked = f"the setting needs {needed}, and {hardware.hostname} has {hardware.gpu_count}"
        return f"{asked}: {'lower --num-workers, or ' if cell.num_workers > 1 else ''}drop --device gpu"
    if cell.device == "cpu" and cell.execution == "graph":
        return "a CPU has no CUDA graphs: use --execution eager or compile"
    if cell.execution != "eager" and cell.num_workers > 1:
        return f"a {cell.execution} step takes a single worker: use --num-workers 1, or --execution eager"
    if cell.execution != "eager" and cell.precision == "fp16":
        return f"the loss scaling of fp16 is not part of a {cell.execution} step: use bf16, or --execution eager"
    if cell.execution == "compile" and not (hardware.compiler and (hardware.triton or cell.device == "cpu")):
        and_triton = ", for a GPU also Triton and a C compiler (gcc)," if cell.device == "gpu" else ""
        return (
            f"torch.compile needs a C++ compiler (g++) and Python's headers (python3-dev){and_triton} on "
            f"{hardware.hostname}: install them, or use --execution eager"
        )
    if cell.device == "cpu" and cell.precision in ("tf32", "fp16"):
        return f"a CPU has no {cell.precision} training: use --precision fp32 or bf16"
    if cell.device == "gpu" and cell.precision in ("tf32", "bf16") and not hardware.gpu_bf16:
        return f"{hardware.gpu_name} has no {cell.precision} units: use --precision fp32 or fp16"
    if cell.kernels == "fused":
        if why := _unfusable(cell):
            return why
        if not _makes_kernels(cell.device, hardware):
            return f"{_kernels_need(cell.device, hardware)}: install them, or use --kernels pytorch"
    threads = cell.cpu_threads * cell.workers_per_node
    if threads > hardware.cpu_count:
        flags = {"--cpu-threads": cell.cpu_threads, "--num-workers": cell.num_workers}
        lower = " or ".join(flag for flag, value in flags.items() if value > 1)
        asked = f"the setting needs {threads} threads, and {hardware.hostname} has processors for {hardware.cpu_count}"
        return f"{asked}: lower {lower}"
    return None
