"""The figures of amounts: images/s against batch size, learning curves, cost against time, the waterfall."""

import textwrap
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from rresnet.figures.drawing import COLOURS, INK, MARKERS, WIDTH, plain_log, row_wise, style, tip


@style()
def batch_sizes(rates: pd.DataFrame, knees: pd.DataFrame) -> Figure:
    """Images a second against batch size, one line per series, with intervals and a ring around each knee.

    Args:
        rates: `series`, `batch_size`, `images_per_second`, `low`, `high` (null without an interval).
        knees: `series`, `batch_size`, `images_per_second`.
    """
    figure, axis = _one(3.6)
    for number, (series, points) in enumerate(rates.groupby("series", sort=False)):
        colour, marker = COLOURS[number], MARKERS[number]
        ordered = points.sort_values("batch_size")
        axis.plot(ordered["batch_size"], ordered["images_per_second"], color=colour, label=str(series))
        for point in ordered.to_dict("records"):
            size, rate = point["batch_size"], point["images_per_second"]
            told = f"{series}, batch {size}: {rate:,.4g} images/s"
            if not pd.isna(point["low"]):
                axis.plot([size, size], [point["low"], point["high"]], color=colour, linewidth=1)
                told += f" ({point['low']:,.4g} - {point['high']:,.4g})"
            tip(axis.plot(size, rate, marker, color=colour)[0], told)
        for knee in knees[knees["series"] == series].to_dict("records"):
            mark = axis.plot(knee["batch_size"], knee["images_per_second"], "o", ms=11, mfc="none", color=colour)
            tip(mark[0], f"knee of {series}: batch {knee['batch_size']}")
    _sizes(axis, sorted(set(rates["batch_size"])))
    axis.set_yscale("log")
    plain_log(axis.yaxis)
    axis.grid(True)
    axis.set_xlabel("batch size, images per step and worker")
    axis.set_ylabel("images/s")
    _legend(figure, axis)
    return figure


@style()
def learning(epochs: pd.DataFrame) -> Figure:
    """Test accuracy against epoch and against seconds of training, one line per setting.

    Args:
        epochs: `setting`, `epoch` (from 1), `elapsed_seconds`, `test_accuracy`.
    """
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for number, (setting, rows) in enumerate(epochs.groupby("setting", sort=False)):
        for axis, column in ((left, "epoch"), (right, "elapsed_seconds")):
            axis.plot(rows[column], rows["test_accuracy"], color=COLOURS[number], label=str(setting))
            for row in rows.to_dict("records"):
                mark = axis.plot(row[column], row["test_accuracy"], MARKERS[number], color=COLOURS[number])
                seconds = f"{row['elapsed_seconds']:,.4g} s"
                tip(mark[0], f"{setting}, epoch {row['epoch']}, {seconds}: {row['test_accuracy']:.3f}")
    left.set_ylabel("test accuracy")
    left.set_xlabel("epoch")
    left.xaxis.get_major_locator().set_params(integer=True)
    right.set_xlabel("seconds of training")
    for axis in (left, right):
        axis.grid(True)
    _legend(figure, left)
    return figure


@style()
def costs(priced: pd.DataFrame, currency: str) -> Figure:
    """Cost against time of an epoch, one mark per setting; those that no other beats are filled and named.

    Args:
        priced: `setting`, `epoch_seconds`, `epoch_cost`, `on_front`.
        currency: that of the costs.
    """
    figure, axis = _one(3.4)
    for row in priced.to_dict("records"):
        fill = COLOURS[0] if row["on_front"] else "none"
        mark = axis.plot(row["epoch_seconds"], row["epoch_cost"], "o", color=COLOURS[0], mfc=fill)
        tip(mark[0], f"{row['setting']}: {row['epoch_seconds']:,.4g} s, {row['epoch_cost']:,.4g} {currency} an epoch")
        if row["on_front"]:
            _beside(axis, textwrap.fill(row["setting"], 24), (row["epoch_seconds"], row["epoch_cost"]), (7, -9))
    axis.set_xlabel("seconds an epoch")
    axis.set_ylabel(f"{currency} an epoch")
    axis.set_ylim(bottom=0)
    axis.set_xlim(left=0)
    axis.margins(x=0.3, y=0.15)
    axis.grid(True)
    return figure


@style()
def waterfall(rungs: pd.DataFrame) -> Figure:
    """The rungs of `rresnet.analysis.ladder.rungs` by device and batch size; each bar starts at the rung before."""
    groups = list(rungs.groupby(["device", "batch_size"], sort=True))
    most = max(len(group) for _, group in groups)
    figure = Figure(figsize=(WIDTH, len(groups) * (0.7 + 0.42 * most)), layout="constrained")
    axes = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
    for axis, ((device, batch_size), group) in zip(axes, groups, strict=True):
        _steps(axis, group)
        axis.set_title(f"{device}, batch {batch_size}")
    return figure


def _steps(axis: Axes, group: pd.DataFrame) -> None:
    rates, names = group["images_per_second"].tolist(), group["change"].tolist()
    for number, (rate, row) in enumerate(zip(rates, group.to_dict("records"), strict=True)):
        below = next((known for known in reversed(rates[:number]) if known == known), 0.0)
        colour = COLOURS[0] if not number else COLOURS[2] if rate >= below else COLOURS[1]
        told = f"{rate:,.0f}" if rate == rate else "not measured"
        if not pd.isna(row["step"]):
            told += f"   {row['step']:.2f}x"
            told += "" if pd.isna(row["step_low"]) else f" ({row['step_low']:.2f} - {row['step_high']:.2f})"
        (bar,) = axis.barh(number, rate - below, left=below, color=colour, height=0.62)
        tip(bar, f"{names[number]}: {told}")
        after = max([r for r in (rate, below) if r == r], default=0.0)
        _beside(axis, told, (after, number), (4, 0))
    axis.set_yticks(range(len(names)), [name.replace(", ", ",\n") for name in names])  # two axes in one rung
    axis.invert_yaxis()
    axis.set_xlabel("images/s")
    axis.set_xlim(0, 1.6 * max([r for r in rates if r == r], default=1.0))
    axis.tick_params(axis="y", length=0)


def _one(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _beside(axis: Axes, text: str, mark: tuple[float, float], points: tuple[float, float]) -> None:
    """Write words next to a mark, so many points from it."""
    axis.annotate(text, mark, xytext=points, textcoords="offset points", va="center", fontsize=8.5, color=INK)


def _sizes(axis: Axes, sizes: Sequence[int]) -> None:
    """Make the axis logarithmic and label the measured sizes, but for those that would touch the one before."""
    kept = [sizes[0]]
    for size in sizes[1:]:
        if size >= kept[-1] * max(1.25, (sizes[-1] / sizes[0]) ** (1 / 10)):
            kept.append(size)
    axis.set_xscale("log", base=2)
    axis.set_xticks(kept, [f"{size:,}" for size in kept])
    axis.xaxis.set_minor_locator(NullLocator())


def _legend(figure: Figure, axis: Axes) -> None:
    """Put the names above the figure, each with its line and mark."""
    names = axis.get_legend_handles_labels()[1]
    keys = [
        Line2D([], [], color=COLOURS[number], marker=MARKERS[number], label=name) for number, name in enumerate(names)
    ]
    columns = 2 if max(map(len, names)) < 28 else 1
    order = row_wise(columns, names)
    figure.legend(handles=[keys[n] for n in order], loc="outside upper left", ncols=columns, borderpad=0)
