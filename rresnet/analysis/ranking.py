"""Which of the cells is the reference, which is first, and whose ratio is known least well."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from rresnet.analysis import pairing, rates
from rresnet.analysis.statistics import MINIMUM_REPEATS, Interval, Series, log_mean_interval
from rresnet.cell import DEVICES
from rresnet.grid import AS_WRITTEN


def reference_cell(cells: list[dict[Any, Any]]) -> Mapping[Any, Any] | None:
    """The cell that the others are compared with: the blog's setting on the CPU at batch 64, or the nearest to it."""
    measured = [c for c in cells if c["repeats"]]
    order = sorted(
        measured,
        key=lambda c: (
            c["recipe"] != "blog",
            DEVICES.index(c["device"]),
            sum(c[axis] != value for axis, value in vars(AS_WRITTEN).items()),
            c["copy"],
            abs(c["batch_size"] - 64),
            c["num_workers"],
        ),
    )
    return order[0] if order else None


def as_written(cells: pd.DataFrame) -> "pd.Series[bool]":
    """Which cells are computed as in the blog's script, in fp32 or tf32, whichever PyTorch takes by default."""
    written = {axis: [value] for axis, value in vars(AS_WRITTEN).items()} | {"precision": ["fp32", "tf32"]}
    return pd.DataFrame({axis: cells[axis].isin(values) for axis, values in written.items()}).all(axis="columns")


def first_two(cells: Sequence[Mapping[Any, Any]], ratio_of: Callable[[int, int], Interval | None]) -> tuple[int, int]:
    """Choose the first and the second of cells that are ranked by their means.

    A mean also counts repeats that another cell lacks, which may be fast or slow ones. So if a cell beats the first in
    the repeats that both have, and the interval says so, it becomes the first instead. This is only checked where one
    of the two lacks repeats: cells without gaps are ranked correctly by their means.

    A cell that is ahead of the first in one or two pairs, too few for an interval, is not chosen as the second if there
    is another, because the first would be reported as slower than it. If there is no other, the two change places.

    Args:
        cells: two or more, each with its number of `repeats`.
        ratio_of: how many times better one cell is than another, by their positions; None if they share no repeat.
    """
    most, first, beaten = max(cell["repeats"] for cell in cells), 0, set[int]()
    while True:
        rivals = (n for n in range(len(cells)) if n != first and n not in beaten)
        gaps = (n for n in rivals if min(cells[n]["repeats"], cells[first]["repeats"]) < most)
        better = (n for n in gaps if (ratio := ratio_of(first, n)) and ratio.high is not None and ratio.high < 1)
        found = next(better, None)
        if found is None:
            break
        beaten.add(first)
        first = found
    rest = [n for n in range(len(cells)) if n != first]

    def oddly_ahead(other: int) -> bool:
        ratio = ratio_of(first, other)
        return ratio is not None and ratio.estimate < 1 and ratio.low is None

    second = next((n for n in rest if most < MINIMUM_REPEATS or not oddly_ahead(n)), rest[0])
    ratio = ratio_of(first, second)
    return (second, first) if ratio is not None and ratio.estimate < 1 else (first, second)


def widest(trials: pd.DataFrame) -> tuple[float, Series] | None:
    """How far the widest interval of a ratio to the reference cell reaches, and its ratios; None without intervals."""
    cells = rates.by_cell(trials).to_dict("records")
    reference = reference_cell(cells)
    if reference is None:
        return None
    pairs = pairing.paired(trials, None, reference["cell_id"]).groupby("cell_id")
    found = [pairing.series_of(of_cell) for _, of_cell in pairs if len(of_cell) >= MINIMUM_REPEATS]
    reaches = ((log_mean_interval(series).reach or 0.0, series) for series in found)
    return max(reaches, key=lambda one: one[0], default=None)
