"""What the speedup from blog to tuned is made of: the rungs of a ladder's run, and the climb in words."""

import pandas as pd

from rresnet.analysis import pairing, ranking, rates
from rresnet.analysis.answer import columns, ratio_text
from rresnet.grid import RUNGS

CHANGES = sum(RUNGS, ())


def rungs(trials: pd.DataFrame) -> pd.DataFrame:
    """The rungs for each device and batch size that has rows of both ends, from the blog's upwards.

    Args:
        trials: rows of a ladder's run.

    Returns:
        One row per rung: `device`, `batch_size`, `change` (what is new compared with the rung before),
        `images_per_second`, and the paired ratio to the rung before (`step`, `step_low`, `step_high`) and to the first
        (`total`, `total_low`, `total_high`); null where there is no ratio, or no interval.
    """
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
                    **columns("step", step),
                    **columns("total", total),
                }
            )
    ends = {**columns("step", None), **columns("total", None)}
    return pd.DataFrame(rows, columns=["device", "batch_size", "change", "images_per_second", *ends])


def summary(ladders: pd.DataFrame) -> list[str]:
    """For each ladder of `rungs`, state in a sentence the whole climb and its largest step."""
    lines = []
    for (device, batch_size), group in ladders.groupby(["device", "batch_size"], sort=True):
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


def left_out(trials: pd.DataFrame, ladders: pd.DataFrame) -> list[str]:
    """Name, in a sentence each, the devices and batch sizes of these trials for which `rungs` has no ladder."""
    axes = ["device", "batch_size"]
    measured, climbed = (set(rows[axes].itertuples(index=False, name=None)) for rows in (trials, ladders))
    return [
        f"{device} batch {batch_size}: no ladder, because blog and tuned do not both have rows there."
        for device, batch_size in sorted(measured - climbed)
    ]
