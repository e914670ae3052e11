"""The answer in the terminal: a table of the cells, and one sentence."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from rresnet import analysis
from rresnet.config import DEVICES
from rresnet.progress import duration
from rresnet.statistics import Interval

NO_GPU = (
    "No GPU was measured. To add GPU rows, give the same command on a machine that has one, "
    "or with --address HOST:6379 to join a Ray cluster that has one."
)


def show(trials: pd.DataFrame, console: Console) -> None:
    """Print the answer to one run's trials."""
    cells = (
        analysis.rates(trials).sort_values("images_per_second", ascending=False, na_position="last").to_dict("records")
    )
    reference = reference_cell(cells)
    console.print(_table(trials, cells, reference))
    console.print(sentence(trials, cells), highlight=False, soft_wrap=True)
    for line in _noise_floor(trials, cells):
        console.print(line, highlight=False, soft_wrap=True)
    if "gpu" not in {cell["device"] for cell in cells}:
        console.print(NO_GPU, style="dim", highlight=False, soft_wrap=True)


def reference_cell(cells: list[dict[Any, Any]]) -> Mapping[str, Any] | None:
    """The cell that the others are compared with: the blog's setting on the CPU at batch 64, or the nearest to it."""
    measured = [c for c in cells if c["repeats"]]
    order = sorted(
        measured,
        key=lambda c: (
            c["recipe"] != "blog",
            DEVICES.index(c["device"]),
            c["copy"],
            abs(c["batch_size"] - 64),
            c["num_workers"],
        ),
    )
    return order[0] if order else None


def sentence(trials: pd.DataFrame, cells: list[dict[Any, Any]]) -> str:
    """The fastest setting, by how much, and whether that can be told from the second."""
    measured = [c for c in cells if c["repeats"] and not c["copy"]]
    if not measured:
        return "No trial ended ok, so there is no answer: the errors stand above, and in the trials table."
    if len(measured) == 1:
        only = measured[0]
        return f"The only setting measured: {_name(only, measured)}, {only['images_per_second']:,.0f} images/s."
    first, second = measured[:2]
    lead = analysis.ratio(trials, first["cell_id"], second["cell_id"])
    told = f"Fastest: {_name(first, measured)}, {first['images_per_second']:,.0f} images/s"
    if lead is None:
        return f"{told}; it was never measured in the same repeat as the second, {_name(second, measured)}."
    than = f"{lead.estimate:.2f}x the second, {_name(second, measured)}"
    apart = analysis.distinguishable(lead)
    if apart is None:
        return f"{told}: {than}. Under 3 repeats no interval is claimed, so it is not known whether they differ."
    verdict = "distinguishable" if apart else "not distinguishable"
    return f"{told}: {than} (95 % interval {_bounds(lead)}, {lead.count} pairs): {verdict}."


def _table(trials: pd.DataFrame, cells: list[dict[Any, Any]], reference: Mapping[str, Any] | None) -> Table:
    accuracy = any(c["test_accuracy"] is not None and c["test_accuracy"] == c["test_accuracy"] for c in cells)
    table = Table(
        box=box.SIMPLE_HEAD,
        caption=_caption(cells, reference),
        caption_justify="left",
    )
    for heading in ("setting", "images/s", "epoch", "speedup", *(["test accuracy"] if accuracy else []), "trials"):
        table.add_column(heading, justify="left" if heading in ("setting", "trials") else "right", no_wrap=True)
    for cell in cells:
        failed = not cell["repeats"]
        row = [_name(cell, cells), _rate(cell), _epoch(cell), _speedup(trials, cell, reference)]
        if accuracy:
            row.append("" if pd.isna(cell["test_accuracy"]) else f"{cell['test_accuracy']:.3f}")
        table.add_row(*row, cell["statuses"], style="red" if failed else None)
    return table


def _caption(cells: list[dict[Any, Any]], reference: Mapping[str, Any] | None) -> str:
    against = f"Speedup over {_name(reference, cells)}, paired by repeat. " if reference else ""
    return f"{against}In brackets: 95 % intervals over repeats."


def _name(cell: Mapping[str, Any], cells: list[dict[Any, Any]]) -> str:
    """What tells the cell from the others: device, recipe, batch size, and each other axis that varies."""
    parts = [cell["device"], cell["recipe"], f"batch {cell['batch_size']}"]
    for axis in ("precision", "input", "execution", "model", "image_size", "num_workers", "cpu_threads"):
        of_recipe = {c[axis] for c in cells if (c["recipe"], c["device"]) == (cell["recipe"], cell["device"])}
        if len(of_recipe) > 1:
            parts.append(f"{axis.replace('_', ' ')} {cell[axis]}" if axis != "precision" else str(cell[axis]))
    return " ".join([*parts, *(["again"] if cell["copy"] else [])])


def _rate(cell: Mapping[str, Any]) -> str:
    if not cell["repeats"]:
        return "not measured"
    if pd.isna(cell["low"]):
        return f"{cell['images_per_second']:,.0f}"
    return f"{cell['images_per_second']:,.0f} ({cell['low']:,.0f} - {cell['high']:,.0f})"


def _epoch(cell: Mapping[str, Any]) -> str:
    if not cell["repeats"]:
        return ""
    return duration(cell["epoch_seconds"]) + (" projected" if cell["epoch_seconds_kind"] == "projected" else "")


def _speedup(trials: pd.DataFrame, cell: Mapping[str, Any], reference: Mapping[str, Any] | None) -> str:
    if reference is None or not cell["repeats"]:
        return ""
    if cell["cell_id"] == reference["cell_id"]:
        return "reference"
    found = analysis.ratio(trials, cell["cell_id"], reference["cell_id"])
    if found is None:
        return "no pair"
    return f"{found.estimate:.2f}" if found.low is None else f"{found.estimate:.2f} ({_bounds(found)})"


def _bounds(interval: Interval) -> str:
    return f"{interval.low:.2f} - {interval.high:.2f}"


def _noise_floor(trials: pd.DataFrame, cells: list[dict[Any, Any]]) -> list[str]:
    """For A/A runs: the ratio of each cell to its identical copy, whose truth is 1."""
    if not any(c["copy"] for c in cells):
        return []
    lines = ["Identical cells against each other (A/A; the truth is 1):"]
    for row in analysis.speedup(trials, over="copy", reference=0).to_dict("records"):
        interval = "no interval under 3 pairs" if pd.isna(row["low"]) else f"{row['low']:.3f} - {row['high']:.3f}"
        lines.append(f"  {row['device']} {row['recipe']} batch {row['batch_size']}: {row['speedup']:.3f} ({interval})")
    return lines
