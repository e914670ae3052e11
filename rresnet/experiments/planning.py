"""What an experiment would run here: its plan, checked before anything starts, and shown."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rresnet import data, grid, hardware
from rresnet.cell import AXES, CELL_COLUMNS, FLAGGED, Cell, Device, Trial, UsageError
from rresnet.config import Settings
from rresnet.tables.place import StoreError
from rresnet.terminal import counted, duration, print_table, say

if TYPE_CHECKING:
    from rresnet.tables.runs import Run

Cells = Callable[[Settings, Sequence[Device], hardware.Hardware], list[Cell]]
Plan = list[tuple[Trial, str | None]]  # with the reason why the trial can't run, or None

USUAL_MODELS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
PROCESS_START_SECONDS = 12.0  # of a fresh trial process on 2 cores: Ray's actor, importing torch, moving the data
GROUP_START_SECONDS = 12.0  # of its worker groups, likewise


def plan(settings: Settings, cells: Cells, machine: hardware.Hardware, machines: int = 1) -> Plan:
    """The planned trials, in the order they run, on so many machines like `machine`.

    Raises UsageError if none of them can run there.
    """
    wanted = _wanted(settings, cells, machine)
    if settings.model not in USUAL_MODELS:
        from rresnet.training import model  # imports torch, which takes seconds: only to look up an unusual name

        model.check(settings.model, settings.image_size, cells=wanted)
    reasons = {cell.cell_id: grid.infeasible(cell, machine, machines) for cell in wanted}
    if not wanted:
        raise UsageError(
            "no --num-workers can be spread evenly over --num-nodes: give --num-workers a multiple of --num-nodes"
        )
    if all(reasons.values()):
        raise UsageError(_nothing_feasible(wanted, reasons, machine, joined=settings.address is not None))
    trials = grid.plan(
        wanted, repeats=settings.repeats_planned, processes=settings.processes_planned, seed=settings.seed
    )
    return [(trial, reasons[trial.cell.cell_id]) for trial in trials]


def _wanted(settings: Settings, cells: Cells, machine: hardware.Hardware) -> list[Cell]:
    kinds: tuple[Device, ...] = ("cpu", "gpu") if machine.gpu_count else ("cpu",)
    return cells(settings, settings.device or kinds, machine)


def alike(settings: Settings, cells: Cells, machine: hardware.Hardware, other: hardware.Hardware) -> bool:
    """Whether the settings mean the same cells on both machines, and both can measure the same ones of them."""
    wanted = _wanted(settings, cells, machine)
    runs = [[grid.infeasible(cell, one, cell.num_nodes) is None for cell in wanted] for one in (machine, other)]
    return wanted == _wanted(settings, cells, other) and runs[0] == runs[1]


def _nothing_feasible(
    wanted: Sequence[Cell], reasons: dict[str, str | None], machine: hardware.Hardware, *, joined: bool
) -> str:
    if {cell.device for cell in wanted} == {"gpu"} and not machine.gpu_count:
        return (
            f"no GPU {'in this Ray cluster' if joined else 'on this machine'} "
            f"({counted(machine.cpu_count, 'CPU')} seen): "
            "drop --device gpu, or join a Ray cluster that has one with --address HOST:6379"
        )
    told = "; and ".join(dict.fromkeys(str(reason) for reason in reasons.values()))
    return f"nothing that was asked for can run here, because {told}"


def check_batches(planned: Plan, images: data.ImageData) -> None:
    """Raise UsageError if a cell that can run has a batch larger than a worker's share of the data set."""
    for cell in dict.fromkeys(trial.cell for trial, reason in planned if reason is None):
        share, workers = len(images.train.labels) // cell.num_workers, cell.num_workers
        each, flags = (f" that each of {workers} workers has", " or --num-workers") if workers > 1 else ("", "")
        if cell.batch_size > share:
            raise UsageError(
                f"{cell.batch_size} images per step and worker are more than the {share} training images of "
                f"{cell.dataset}{each}: lower --batch-size{flags}, or give a larger --dataset"
            )


def conditions(settings: Settings, machines: Sequence[hardware.Hardware], images: data.ImageData) -> list[str]:
    """What is printed first, and holds for all trials: on which machines they run, and with which images."""
    size = f"{settings.image_size} x {settings.image_size}"
    return [
        *machine_lines(machines),
        f"{settings.model} on {len(images.train.labels):,} training and {len(images.test.labels):,} test images of "
        f"{settings.dataset}, {size}, {len(images.classes)} classes",
        *_shrunk(images, settings.image_size),
    ]


def opening(
    this: "Run", settings: Settings, planned: Plan, done: Collection[str], machine: hardware.Hardware
) -> list[str]:
    """What is printed before the first trial of a run: what it measures, and how much is done, also beyond the plan."""
    lines = [*_recipe_lines(planned), *_lacking_lines(planned, machine), _size(planned, settings)]
    if done:
        count = counted(len(done), "trial is", "trials are")
        lines.append(f"Continuing run {this.run_id}: {count} done (--fresh starts anew)")
    impossible = dict.fromkeys(str(reason) for trial, reason in planned if reason and trial.trial_id not in done)
    return [*lines, *(f"infeasible, kept as rows, because {reason}" for reason in impossible)]


def _shrunk(images: data.ImageData, size: int) -> list[str]:
    """Say what it means if the user's own images are larger than the size that they are trained at."""
    if images.short_side is None or images.short_side <= size:
        return []
    told = f"The images' short side, {images.short_side} pixels in the median, is resized to {size}"
    if size != Settings.image_size:
        return [told]  # it was chosen
    why = "Training on larger images is different work with a different answer"
    return [f"{told}. {why}: give the --image-size that you will train at"]


def _recipe_lines(planned: Plan) -> list[str]:
    """What each recipe comes to on each device here, as far as it is not PyTorch's default."""
    groups: dict[tuple[Device, str], list[Cell]] = {}
    for cell in dict.fromkeys(trial.cell for trial, _ in planned):
        groups.setdefault((cell.device, cell.recipe), []).append(cell)
    lines = []
    for (device, recipe), cells in groups.items():
        same = {axis: getattr(cells[0], axis) for axis in AXES if len({getattr(cell, axis) for cell in cells}) == 1}
        unusual = {axis: value for axis, value in same.items() if value != getattr(grid.AS_WRITTEN, axis)}
        told = (_words(axis) if value is True else f"{_words(axis)} {value}" for axis, value in unusual.items())
        lines += [f"{device} {recipe} is {', '.join(told)}"] if unusual else []
    return lines


def _lacking_lines(planned: Plan, machine: hardware.Hardware) -> list[str]:
    """Say what is slower than it need be because the machine lacks what makes fused kernels, or bfloat16 products."""
    cells = dict.fromkeys(trial.cell for trial, _ in planned)
    told = {(cell.device, cell.recipe): why for cell in cells if (why := grid.without_fused(cell, machine))}
    lines = [f"{device} {recipe} has PyTorch's kernels: {why}" for (device, recipe), why in told.items()]
    if not machine.cpu_bf16 and any((cell.device, cell.precision) == ("cpu", "bf16") for cell in cells):
        lines.append("This processor has no bfloat16 products: bf16 is emulated, and slower than fp32")
    return lines


def machine_lines(machines: Sequence[hardware.Hardware]) -> list[str]:
    """The machines by kind, and what it means if there are several."""
    kinds: dict[str, list[str]] = {}
    for machine in machines:
        gpus = f", {machine.gpu_count} x {machine.gpu_name}" if machine.gpu_count else ", no GPU"
        kinds.setdefault(f"{machine.cpu_model}, {counted(machine.cpu_count, 'CPU')}{gpus}", []).append(machine.hostname)
    lines = [f"{', '.join(hosts)}: {kind}" for kind, hosts in kinds.items()]
    if len(machines) > 1:
        lines.append(f"{len(machines)} machines measure side by side; pairs are formed within each")
    ((name, count),) = Counter(machine.hostname for machine in machines).most_common(1)
    if count > 1:
        lines.append(
            f"{count} of them are called {name}: if they are one, their trials slow each other (--machines 1); if not, "
            "give each a host name of its own, by which rows are told apart"
        )
    if len(kinds) > 1:
        lines.append("These machines are not alike: rates and speedups are averages over all of them")
    return lines


def show(planned: Plan, settings: Settings, console: Console, continued: "Run | None", done: Collection[str]) -> None:
    """Print the planned settings, and how long their trials will take as far as earlier results tell.

    Args:
        planned: the plan.
        settings: what it was made from.
        console: where to print.
        continued: the earlier run that would be continued.
        done: the trials of that run that would not be run again.
    """
    todo = [trial for trial, reason in planned if reason is None and trial.trial_id not in done]
    reasons = {trial.cell: reason for trial, reason in planned}
    cells = sorted(reasons, key=_place)
    values = {axis: [getattr(cell, axis) for cell in cells] for axis in CELL_COLUMNS}
    recipes = [list(of) for _, of in itertools.groupby(cells, lambda cell: (cell.device, cell.recipe))]
    asked = {axis for axis in CELL_COLUMNS if any(len({getattr(cell, axis) for cell in of}) > 1 for of in recipes)}
    if asked & {*AXES} - {*FLAGGED}:  # a ladder, whose last change comes with the name of the other recipe
        asked |= {*AXES}
    axes = ("device", "recipe", *FLAGGED, "batch_size", "num_workers", "cpu_threads")
    varied = [axis for axis in CELL_COLUMNS if (axis in asked or axis in axes) and len(set(values[axis])) > 1]
    some = f"{len(todo)} of " if len(todo) < len(planned) else ""
    say(console, f"Would run {some}{_size(planned, settings)}")
    table = {_words(axis): list(map(str, values[axis])) for axis in varied}
    words = ("feasible", *(_words(axis) for axis in varied if isinstance(values[axis][0], str)))
    if any(reasons.values()):
        table["feasible"] = [reasons[cell] or "yes" for cell in cells]
    if table:
        print_table(console, table, left=words, broken="feasible")
    same = (f"{_words(axis)} {values[axis][0]}" for axis in axes if axis not in varied)
    say(console, f"In all of them: {', '.join(same)}.")
    say(console, [*_recipe_lines(planned), *([_prediction(todo, settings)] if todo else [])])
    if continued:
        count = sum(trial.trial_id in done for trial, _ in planned)
        say(console, f"{count} of them are done: it would go on with run {continued.run_id} (--fresh starts anew)")


def _place(cell: Cell) -> tuple[Any, ...]:
    """Where a setting stands in a list: on the ladder, after those that it adds a change to."""
    unlike = (getattr(cell, axis) != getattr(grid.AS_WRITTEN, axis) for axis in AXES)
    return cell.device, cell.recipe, *unlike, cell.batch_size, cell.num_workers, cell.label(), cell.copy


def _size(planned: Plan, settings: Settings) -> str:
    cells = counted(len({trial.cell for trial, _ in planned}), "setting")
    repeats = counted(settings.repeats_planned, "repeat")
    processes = counted(settings.processes_planned, "process", "processes")
    return f"{counted(len(planned), 'trial')}: {cells} x {repeats}, {processes}"


def _words(axis: str) -> str:
    return axis.removeprefix("num_").removeprefix("cpu_").replace("_", " ")


def _prediction(trials: Sequence[Trial], settings: Settings) -> str:
    from rresnet.analysis import frames, rates

    several = any(trial.cell.num_workers > 1 for trial in trials)
    process_start = PROCESS_START_SECONDS + (GROUP_START_SECONDS if several else 0.0)
    seconds: dict[str, tuple[float, float]] = {}
    with contextlib.suppress(StoreError):
        earlier = frames.read(settings.results_dir).trials
        seconds = rates.trial_seconds(earlier, [trial.cell for trial in trials], settings.seconds)
    unknown = {trial.cell.cell_id for trial in trials} - seconds.keys()
    if unknown:
        size = f"{settings.model} at {settings.image_size} pixels"
        which = f"{settings.results_dir} holds a first result of {size}"
        epochs = ", of the same settings with --epochs" if settings.epochs else ""
        return f"Predicted duration: not known until {which}, on the same device{epochs}."
    total, begun = len({trial.process for trial in trials}) * process_start, set[tuple[int, str]]()
    for trial in trials:
        first, later = seconds[trial.cell.cell_id]
        total += later if (trial.process, trial.cell.cell_id) in begun else first
        begun.add((trial.process, trial.cell.cell_id))
    return f"Predicted duration: {duration(total)} from start to end, from the trials in {settings.results_dir}."
