"""The answer in the terminal: a table of the cells, and one sentence."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich.console import Console

from rresnet import analysis
from rresnet.analysis import comparison, regimes
from rresnet.analysis.statistics import MINIMUM_REPEATS, MOST_REPEATS
from rresnet.config import AXES
from rresnet.quality.flags import ADVICE
from rresnet.terminal import duration, number, percent, print_table, say

ALIKE = "~ "  # marks a speedup that can't be told from 1

NO_GPU = (
    "No GPU was measured. To add GPU rows, give the same command on a machine that has one, "
    "or with --address HOST:6379 to join a Ray cluster that has one."
)


def findings(trials: pd.DataFrame, console: Console) -> None:
    """Print the table of one run's cells, and the fastest of them in a sentence."""
    cells = ranked(trials)
    _print_table(trials, cells, analysis.reference_cell(cells), console)
    for line in (sentence(trials, cells), *scatter(trials, cells), *_noise_floor(trials, cells)):
        say(console, line)


def remarks(trials: pd.DataFrame, console: Console, *, advice: bool = True) -> None:
    """Print what makes one run's findings doubtful, and what they lack; with advice unless that is not wanted."""
    cells = ranked(trials)
    for line in states(trials, cells):
        say(console, line)
    for flag, count, what in flagged(trials):
        told = f": {what}" if advice and what else ""
        say(console, f"{count} of {len(trials)} rows are flagged {flag}{told}.")
    if "gpu" not in {cell["device"] for cell in cells}:
        say(console, NO_GPU, "dim")


def ranked(trials: pd.DataFrame) -> list[dict[Any, Any]]:
    """The cells as `analysis.rates` gives them, the fastest first, those that never ended ok last."""
    rates = analysis.rates(trials)
    return rates.sort_values("images_per_second", ascending=False, na_position="last").to_dict("records")


def sentence(trials: pd.DataFrame, cells: list[dict[Any, Any]]) -> str:
    """The fastest setting, by how much, and whether that can be told from the second."""
    measured = [c for c in cells if c["repeats"] and not c["copy"]]
    if not measured:
        return "No trial ended ok, so there is no answer: the errors stand above, and in the trials table."
    if len(measured) == 1:
        only = measured[0]
        return f"The only setting measured: {name(only, measured)}, {number(only['images_per_second'])} images/s."
    first, second = measured[:2]
    lead = analysis.ratio(trials, first["cell_id"], second["cell_id"])
    by = "Fastest"
    if lead is not None and lead.estimate < 1:  # a rate also counts repeats that the other one lacks
        first, second, by = second, first, "Fastest in the repeats that both have"
        lead = analysis.ratio(trials, first["cell_id"], second["cell_id"])
    told = f"{by}: {name(first, measured)}, {number(first['images_per_second'])} images/s"
    if lead is None:
        return f"{told}; it was never measured in the same repeat as the second, {name(second, measured)}."
    than = f"{lead.estimate:.2f}x the second, {name(second, measured)}"
    floor = comparison.noise_floor(trials)
    apart = analysis.distinguishable(lead, floor)
    if apart is None:
        return f"{told}. That is {than}. Under 3 repeats there is no interval, so it is not known whether they differ."
    verdict = "distinguishable" if apart else "not distinguishable"
    if not apart and analysis.distinguishable(lead):
        assert floor is not None
        verdict += f", for identical settings came out up to {percent(floor, 1)} apart"
    return f"{told}. That is {than} (95 % interval {lead.low:.2f} - {lead.high:.2f}, {lead.count} pairs): {verdict}."


def _print_table(
    trials: pd.DataFrame, cells: list[dict[Any, Any]], reference: Mapping[str, Any] | None, console: Console
) -> None:
    floor = comparison.noise_floor(trials)
    columns = {
        "setting": [name(cell, cells) for cell in cells],
        "images/s": [rate(cell) for cell in cells],
        "epoch": [epoch(cell) for cell in cells],
        "speedup": [_speedup(trials, cell, reference, floor) for cell in cells],
        "test accuracy": [_told(cell["test_accuracy"], "{:.3f}") for cell in cells],
        "of limit": [_told(cell["percent_of_limit"], "{:.0f} %") for cell in cells],
        "bound by": [_told(cell["bottleneck"], "{}") for cell in cells],
        "trials": [cell["statuses"] for cell in cells],
    }
    optional = ["bound by", "of limit", "test accuracy", "epoch"]
    if not any(columns["test accuracy"]):
        del columns["test accuracy"]
        optional.remove("test accuracy")
    print_table(
        console,
        columns,
        caption=_caption(cells, reference, marked=any(told.startswith(ALIKE) for told in columns["speedup"])),
        left=("setting", "bound by", "trials"),
        broken="setting",
        left_out=optional,
        red=[number for number, cell in enumerate(cells) if not cell["repeats"]],
    )


def _told(value: Any, form: str) -> str:
    return "" if pd.isna(value) else form.format(value)


def _caption(cells: list[dict[Any, Any]], reference: Mapping[str, Any] | None, *, marked: bool) -> str:
    against = f"Speedup over {name(reference, cells)}, paired by repeat. " if reference else ""
    mark = f"\n{ALIKE.strip()}: not distinguishable from the reference." if marked else ""
    return f"{against}In brackets: 95 % intervals over repeats.{mark}"


def name(cell: Mapping[str, Any], cells: list[dict[Any, Any]]) -> str:
    """What tells the cell from the others: device, recipe, batch size, and each other axis that varies."""
    parts = [cell["device"], cell["recipe"], f"batch {cell['batch_size']}"]
    alike = [c for c in cells if (c["recipe"], c["device"]) == (cell["recipe"], cell["device"])]
    for axis in (*AXES, "model", "dataset", "image_size", "num_workers", "num_nodes", "cpu_threads", "epochs", "seed"):
        if len({"none" if pd.isna(c[axis]) else c[axis] for c in alike}) > 1:
            value = "none" if pd.isna(cell[axis]) else int(cell[axis]) if axis == "epochs" else cell[axis]
            parts.append(str(value) if axis == "precision" else f"{axis.replace('_', ' ')} {value}")
    return " ".join([*parts, *(["again"] if cell["copy"] else [])])


def rate(cell: Mapping[str, Any]) -> str:
    """A cell's images a second with its interval."""
    if not cell["repeats"]:
        return "not measured"
    if pd.isna(cell["low"]):
        return number(cell["images_per_second"])
    return f"{number(cell['images_per_second'])} ({number(cell['low'])} - {number(cell['high'])})"


def epoch(cell: Mapping[str, Any]) -> str:
    """How long a cell takes for an epoch, and whether that is projected."""
    if not cell["repeats"]:
        return ""
    return duration(cell["epoch_seconds"]) + (" projected" if cell["epoch_seconds_kind"] == "projected" else "")


def _speedup(
    trials: pd.DataFrame, cell: Mapping[str, Any], reference: Mapping[str, Any] | None, floor: float | None
) -> str:
    if reference is None or not cell["repeats"]:
        return ""
    if cell["cell_id"] == reference["cell_id"]:
        return "reference"
    found = analysis.ratio(trials, cell["cell_id"], reference["cell_id"])
    if found is None:
        return "no pair"
    mark = ALIKE if analysis.distinguishable(found, floor) is False else ""
    return mark + ratio_text(found.estimate, found.low, found.high)


def ratio_text(estimate: float | None, low: float | None, high: float | None, none: str = "no pair") -> str:
    """A ratio with its interval in brackets, where it has one; `none` where it is null."""
    if pd.isna(estimate):
        return none
    return f"{estimate:.2f}" if pd.isna(low) else f"{estimate:.2f} ({low:.2f} - {high:.2f})"


def scatter(trials: pd.DataFrame, cells: list[dict[Any, Any]]) -> list[str]:
    """What adds to the interval of the lead, and what it would take to halve it."""
    measured = [c for c in cells if c["repeats"] and not c["copy"]]
    pairs = analysis.paired(trials, measured[0]["cell_id"], measured[1]["cell_id"]) if len(measured) > 1 else None
    if pairs is None or len(pairs) < MINIMUM_REPEATS:
        return []
    lead = analysis.lead(pairs)
    parts, half = lead.parts, lead.half_width
    if not half:
        return []
    of = ((parts.repeat_sd, "from repeat to repeat"), (parts.process_sd, "from process to process"))
    shares = [f"{percent(sd, 1)} {where}" for sd, where in of if sd]
    scattered = f"That ratio scatters by {' and by '.join(shares)} (standard deviations). " if shares else ""
    needed = lead.repeats_for(half / 2)
    if needed:
        return [f"{scattered}Half as wide an interval takes about {needed} repeats."]
    never = (
        f"as long as they come from {parts.processes} processes: give more --processes, too"
        if lead.processes_differ(half / 2)
        else "for the machine's slow drift: a quieter machine does more"
    )
    return [f"{scattered}No {MOST_REPEATS:,} repeats would halve its interval, {never}."]


def states(trials: pd.DataFrame, cells: list[dict[Any, Any]]) -> list[str]:
    """Where the machine changed, and which speedups depend on that."""
    reference = analysis.reference_cell(cells)
    slow = regimes.slow_repeats(trials)
    told = ", ".join(map(str, sorted({repeat for _, _, repeat in slow})))
    lines = [f"The machine changed: its canary was slow where the column repeat is {told}."] if slow else []
    for cell in cells:
        if reference is None or not cell["repeats"] or cell["cell_id"] == reference["cell_id"]:
            continue
        found = regimes.split(trials, cell["cell_id"], reference["cell_id"], slow=slow)
        if found:
            quiet, loaded = (ratio_text(one.estimate, one.low, one.high) for one in found)
            which = f"{name(cell, cells)} over {name(reference, cells)}"
            counts = f"{found[0].count} and {found[1].count} repeats"
            lines.append(
                f"It depends on the machine's state: {which} is {quiet} while quiet, {loaded} while loaded ({counts})."
            )
    return lines


def flagged(trials: pd.DataFrame) -> list[tuple[str, int, str]]:
    """Each quality flag of the rows, how many carry it, and what to do about it."""
    counts = trials["quality_flags"].explode().dropna().value_counts()
    return [(str(flag), int(count), ADVICE.get(str(flag), "")) for flag, count in counts.items()]


def doubts(trials: pd.DataFrame) -> list[str]:
    """In a sentence, where most rows are doubtful."""
    doubtful = int(trials["quality_flags"].map(lambda of_row: of_row is not None and len(of_row) > 0).sum())
    if doubtful <= len(trials) / 2:
        return []
    names = ", ".join(flag for flag, _, _ in flagged(trials))
    return [f"{doubtful} of {len(trials)} rows are doubtful: {names}."]


def _noise_floor(trials: pd.DataFrame, cells: list[dict[Any, Any]]) -> list[str]:
    """For A/A runs: the ratio of each cell to its identical copy, whose truth is 1."""
    floor = comparison.noise_floor(trials)
    if floor is None:
        return []
    told = f"a speedup below {percent(floor, 1)}, the noise floor, is not distinguishable"
    lines = [f"Identical settings against each other (A/A; the truth is 1; {told}):"]
    for row in comparison.speedup(trials, over="copy", reference=0, allow=comparison.ALIKE).to_dict("records"):
        interval = "no interval under 3 pairs" if pd.isna(row["low"]) else f"{row['low']:.3f} - {row['high']:.3f}"
        lines.append(f"  {row['device']} {row['recipe']} batch {row['batch_size']}: {row['speedup']:.3f} ({interval})")
    return lines
