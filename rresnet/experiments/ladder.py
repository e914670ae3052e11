"""From the blog's recipe to the tuned one, one change at a time: what the speedup is made of."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console

from rresnet import grid
from rresnet.cell import AXES, FLAGGED, Cell, Device, UsageError
from rresnet.config import Settings
from rresnet.hardware import Hardware
from rresnet.tables.place import Location
from rresnet.terminal import number, print_table, say

if TYPE_CHECKING:
    import pandas as pd

# In the order they are taken; where the two recipes agree on a device is no rung there. cuDNN keeps the kernels that it
# has found for a layout and precision, however it looked for them, so its search is taken with the layout: a rung of
# its own would train on what another rung of its process has found.
_FIRST: tuple[tuple[str, ...], ...] = (
    ("input",), ("channels_last", "cudnn_benchmark"), ("pointwise",), ("small_maps",), ("precision",),
    ("fused_optimizer",), ("execution",),
)  # fmt: skip
_RUNGS = (*_FIRST, *((axis,) for axis in AXES if axis not in sum(_FIRST, ())))
CHANGES = sum(_RUNGS, ())


def cells(settings: Settings, devices: Sequence[Device], hardware: Hardware) -> list[Cell]:
    """The rungs for each device and batch size: the blog's cell, then each with one axis more as tuned has it."""
    for name in ("recipe", *FLAGGED):
        if getattr(settings, name) != getattr(Settings, name):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} can't be given here, for the ladder goes from blog to tuned: leave it out")
    if settings.num_workers != (1,) or settings.num_nodes:
        raise UsageError(
            "--num-workers and --num-nodes can't be given here, for the ladder is one worker's: leave them out"
        )
    if settings.aa:
        raise UsageError("--aa can't be given here, for the ladder measures no cell twice: leave it out")
    found = []
    for device in devices:
        blog, tuned = grid.blog(device, hardware), grid.tuned(device, hardware)
        rungs = [blog]
        for axes in _RUNGS:
            rung = replace(rungs[-1], **{axis: getattr(tuned, axis) for axis in axes})
            rungs += [rung] if rung != rungs[-1] else []
        for cell in grid.cells(replace(settings, recipe=("blog",)), [device], hardware):  # one a batch size
            found += [replace(cell, recipe="tuned" if axes == tuned else "blog", **vars(axes)) for axes in rungs]
    return found


def rungs(trials: "pd.DataFrame") -> "pd.DataFrame":
    """The rungs of each device and batch size that has rows of both ends, from the blog's up.

    Args:
        trials: rows of a ladder's run.

    Returns:
        One row a rung: `device`, `batch_size`, `change` (what it has that the one before had not), `images_per_second`,
        the paired ratio to the rung before (`step`, `step_low`, `step_high`) and to the first (`total`, `total_low`,
        `total_high`); null where there is none, or no interval.
    """
    import pandas as pd

    from rresnet.analysis import pairing, ranking, rates

    rows = []
    cells = rates.by_cell(trials)
    for (device, batch_size), group in cells.groupby(["device", "batch_size"], sort=True):
        is_top = group["recipe"] == "tuned"
        if not (is_top.any() and ranking.as_written(group).any()):
            continue  # an end has no row: the run is not finished, or the end does not run at that size (auto)
        top = group[is_top].iloc[0]
        climbed = sum((group[axis] == top[axis]).astype(int) for axis in CHANGES)
        order = group.assign(climbed=climbed).sort_values("climbed").to_dict("records")
        for below, rung in zip([order[0], *order], order, strict=False):
            lowest = rung is order[0]
            step = None if lowest else pairing.ratio(trials, rung["cell_id"], below["cell_id"])
            total = None if lowest else pairing.ratio(trials, rung["cell_id"], order[0]["cell_id"])
            changes = [axis for axis in CHANGES if rung[axis] != below[axis]]
            rows.append(
                {
                    "device": device,
                    "batch_size": batch_size,
                    "change": ", ".join(f"{axis} {below[axis]} -> {rung[axis]}" for axis in changes) or "blog",
                    "images_per_second": rung["images_per_second"],
                    **_columns("step", step),
                    **_columns("total", total),
                }
            )
    known = ["device", "batch_size", "change", "images_per_second", *_columns("step", None), *_columns("total", None)]
    return pd.DataFrame(rows, columns=known)


def _columns(name: str, interval: object) -> dict[str, float | None]:
    values = {"": "estimate", "_low": "low", "_high": "high"}
    return {f"{name}{end}": getattr(interval, source, None) for end, source in values.items()}


def show(trials: "pd.DataFrame", console: Console, results: Location) -> None:
    """Print the ladder of a run, and draw it as a waterfall in `results/figures`."""
    from rresnet.analysis.answer import ratio_text
    from rresnet.figures import amounts, drawing
    from rresnet.tables import place

    found = rungs(trials)
    lines = [*summary(found), *left_out(trials, found)]
    if found.empty:
        say(console, lines)
        return
    rows = found.to_dict("records")
    columns = {
        "device": [row["device"] for row in rows],
        "batch size": [str(row["batch_size"]) for row in rows],
        "change": [row["change"] for row in rows],
        "images/s": ["not measured" if rate != rate else number(rate) for rate in found["images_per_second"]],
        "over the one before": [ratio_text(row["step"], row["step_low"], row["step_high"], none="") for row in rows],
        "over blog": [ratio_text(row["total"], row["total_low"], row["total_high"], none="") for row in rows],
    }
    caption = "Ratios of images/s, paired; in brackets 95 % intervals."
    needless = [heading for heading in ("device", "batch size") if len(set(columns[heading])) == 1]
    words = ("device", "change")
    print_table(console, columns, caption=caption, left=words, broken="change", left_out=["images/s", *needless])
    say(console, lines)
    kept, figure, name = place.at(results), amounts.waterfall(found), f"figures/ladder-{trials['run_id'].iloc[0]}"
    for file, content in drawing.files(figure, name, drawing.svg(figure)).items():
        kept.write(file, content)
        say(console, f"Figure: {kept.told(file)}", "dim")


def summary(found: "pd.DataFrame") -> list[str]:
    """For each ladder of `rungs` the whole climb and its largest step, in a sentence."""
    from rresnet.analysis.answer import ratio_text

    lines = []
    for (device, batch_size), group in found.groupby(["device", "batch_size"], sort=True):
        top, steps = group.iloc[-1], group.dropna(subset=["step"])
        total = ratio_text(top["total"], top["total_low"], top["total_high"], none="")
        if steps.empty or not total:
            lines.append(f"{device} batch {batch_size}: the ladder's ends were not measured in the same repeat.")
            continue
        most = steps.sort_values("step").iloc[-1]
        step = ratio_text(most["step"], most["step_low"], most["step_high"])
        lines.append(
            f"{device} batch {batch_size}: tuned over blog {total}; the largest step is {most['change']}, {step}."
        )
    return lines


def left_out(trials: "pd.DataFrame", found: "pd.DataFrame") -> list[str]:
    """The devices and batch sizes that `rungs` of these trials has no ladder of, each in a sentence."""
    axes = ["device", "batch_size"]
    measured, told = (set(rows[axes].itertuples(index=False, name=None)) for rows in (trials, found))
    return [
        f"{device} batch {batch_size}: no ladder, for blog and tuned do not both have rows there."
        for device, batch_size in sorted(measured - told)
    ]
