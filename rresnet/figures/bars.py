"""The figures with one line per setting: speedups, where the time goes, the clocks, and shares and amounts as bars."""

import textwrap
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rresnet.analysis.answer import ratio_text
from rresnet.figures.drawing import COLOURS, INK, MARKERS, MUTED, WIDTH, plain_log, row_wise, style, tip

WRAP = 28  # letters of a setting's name per line


@style()
def speedups(cells: pd.DataFrame, reference: str) -> Figure:
    """The ratio of each setting to the reference, with its interval, on a logarithmic axis.

    Args:
        cells: `setting`, `device`, `speedup`, `speedup_low`, `speedup_high` (null without an interval).
        reference: the name of what they are compared with.
    """
    figure, axis = _lines(cells["setting"].tolist())
    colours = {device: COLOURS[n] for n, device in enumerate(sorted(cells["device"].unique()))}
    for number, cell in enumerate(cells.to_dict("records")):
        colour, ratio = colours[cell["device"]], cell["speedup"]
        interval = not pd.isna(cell["speedup_low"])
        told = ratio_text(ratio, cell["speedup_low"], cell["speedup_high"])
        if interval:
            axis.plot([cell["speedup_low"], cell["speedup_high"]], [number, number], color=colour)
        mark = axis.plot(ratio, number, "o", color=colour, mfc=colour if interval else "none")
        tip(mark[0], f"{cell['setting']}: {told}, {cell['pairs']:.0f} pairs")
        _beside(axis, told, number)
    axis.axvline(1, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
    axis.set_xscale("log")
    low = min(1, cells[["speedup", "speedup_low"]].min().min()) / 1.15
    high = max(1, cells[["speedup", "speedup_high"]].max().max()) * 1.15
    axis.set_xlim(low, high)
    plain_log(axis.xaxis, "x")
    axis.set_xlabel(textwrap.fill(f"speedup over {reference}", 2 * WRAP))
    return figure


@style()
def stacked(table: pd.DataFrame, unit: str) -> Figure:
    """Stack each setting's amounts in one bar.

    Args:
        table: one row per setting, its name as the index, and one column per kind of amount; null where there is none.
        unit: label of the axis.
    """
    figure, axis = _lines(list(table.index))
    left = pd.Series(0.0, index=range(len(table)))
    for column, colour in zip(table.columns, COLOURS, strict=False):
        values = table[column].fillna(0.0).reset_index(drop=True)
        drawn = axis.barh(range(len(table)), values, left=left, color=colour, height=0.62, label=column)
        for bar, setting, value in zip(drawn, table.index, table[column], strict=True):
            if value == value:
                tip(bar, f"{setting}, {column}: {value:,.4g} {unit}")
        left += values
    axis.set_xlabel(unit)
    columns = 4 if len(table.columns) == 4 else 3  # none alone on a second line
    bars = [axis.containers[n] for n in row_wise(columns, list(table.columns))]
    figure.legend(handles=bars, loc="outside upper left", ncols=columns, borderpad=0, handlelength=1.2)
    return figure


@style()
def clocks(table: pd.DataFrame) -> Figure:
    """Show each setting's clocks on one logarithmic axis, one mark per clock.

    Args:
        table: images a second; one row per setting, its name as the index, and one column per clock; null where it was
            not read.
    """
    figure, axis = _lines(list(table.index))
    for number, (column, marker) in enumerate(zip(table.columns, MARKERS, strict=False)):
        seen = [(place, rate) for place, rate in enumerate(table[column]) if rate == rate]
        for place, rate in seen:
            fill = COLOURS[number] if number == 0 else "none"
            (mark,) = axis.plot(rate, place, marker, color=COLOURS[number], mfc=fill, mew=1.4)
            tip(mark, f"{table.index[place]}, {column}: {rate:,.4g} images/s")
            mark.set_label(column if place == seen[0][0] else "")
    axis.set_xscale("log")
    plain_log(axis.xaxis)
    axis.grid(True, axis="both")
    axis.set_xlabel("images/s")
    figure.legend(loc="outside upper left", ncols=3, borderpad=0, handletextpad=0.2)
    return figure


@style()
def amounts(values: Mapping[str, float], unit: str, *, notes: Mapping[str, str] | None = None) -> Figure:
    """One bar per setting, with its value beside it.

    Args:
        values: the amounts by setting.
        unit: label of the axis.
        notes: by setting, a word to add beside its value.
    """
    figure, axis = _lines(list(values))
    for number, (setting, value) in enumerate(values.items()):
        told = " ".join(filter(None, (f"{value:,.0f}" if value >= 100 else f"{value:.3g}", (notes or {}).get(setting))))
        (bar,) = axis.barh(number, value, color=COLOURS[0], height=0.62)
        tip(bar, f"{setting}: {told} {unit}")
        _beside(axis, told, number)
    axis.set_xlabel(unit)
    return figure


def _lines(settings: Sequence[str]) -> tuple[Figure, Axes]:
    """A figure with one line per setting, the first at the top."""
    names = [textwrap.fill(setting, WRAP) for setting in settings]
    height = 0.75 + len(names) * (0.2 + 0.13 * max(name.count("\n") for name in names))
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axis = figure.subplots()
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0, labelcolor=INK)
    axis.grid(True, axis="x")
    axis.spines["left"].set_visible(False)
    return figure, axis


def _beside(axis: Axes, text: str, place: int) -> None:
    """Write a value's text at the right edge, in a column."""
    axis.text(1.02, place, text, transform=axis.get_yaxis_transform(), va="center", fontsize=8.5, color=INK)
