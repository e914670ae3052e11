"""From the blog's recipe to the tuned one, one change at a time: which settings these are, and how they are shown."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console

from rresnet import grid
from rresnet.cell import FLAGGED, Cell, Device, UsageError
from rresnet.config import Settings
from rresnet.hardware import Hardware
from rresnet.tables.place import Location
from rresnet.terminal import number, print_table, say

if TYPE_CHECKING:
    import pandas as pd


DECIDED = ("recipe", *FLAGGED, "num_workers", "num_nodes", "aa")  # by the ladder itself


def cells(settings: Settings, devices: Sequence[Device], hardware: Hardware) -> list[Cell]:
    """The rungs for each device and batch size: the blog's cell, then one more of tuned's changes in each cell."""
    for name in DECIDED:
        if getattr(settings, name) != getattr(Settings, name):
            raise UsageError(
                f"--{name.replace('_', '-')} can't be given here: the ladder goes from blog to tuned one change at a "
                "time, with one worker and no setting twice, and so decides it itself; leave it out"
            )
    found = []
    ends = (grid.cells(replace(settings, recipe=(name,)), devices, hardware) for name in ("blog", "tuned"))
    for blog, tuned in zip(*ends, strict=True):  # of one device and batch size
        rungs = [blog]
        for axes in grid.RUNGS:
            rung = replace(rungs[-1], **{axis: getattr(tuned, axis) for axis in axes})
            rungs += [rung] if rung != rungs[-1] else []
        found += [*rungs[:-1], tuned]  # the last rung, by its name
    return found


def show(trials: "pd.DataFrame", console: Console, results: Location) -> None:
    """Print the ladder of a run, and draw it as a waterfall in `results/figures`."""
    from rresnet.analysis import ladder
    from rresnet.analysis.answer import ratio_text
    from rresnet.figures import amounts, drawing
    from rresnet.tables import place

    rungs = ladder.rungs(trials)
    lines = [*ladder.summary(rungs), *ladder.left_out(trials, rungs)]
    if rungs.empty:
        say(console, lines)
        return
    rows = rungs.to_dict("records")
    columns = {
        "device": [row["device"] for row in rows],
        "batch size": [str(row["batch_size"]) for row in rows],
        "change": [row["change"] for row in rows],
        "images/s": ["not measured" if rate != rate else number(rate) for rate in rungs["images_per_second"]],
        "over the one before": [ratio_text(row["step"], row["step_low"], row["step_high"], none="") for row in rows],
        "over blog": [ratio_text(row["total"], row["total_low"], row["total_high"], none="") for row in rows],
    }
    caption = "Ratios of images/s, paired; in brackets 95 % intervals."
    needless = [heading for heading in ("device", "batch size") if len(set(columns[heading])) == 1]
    words = ("device", "change")
    print_table(console, columns, caption=caption, left=words, broken="change", left_out=["images/s", *needless])
    say(console, lines)
    kept, figure, name = place.at(results), amounts.waterfall(rungs), f"figures/ladder-{trials['run_id'].iloc[0]}"
    for file, content in drawing.files(figure, name, drawing.svg(figure)).items():
        kept.write(file, content)
        say(console, f"Figure: {kept.full_name(file)}", "dim")
