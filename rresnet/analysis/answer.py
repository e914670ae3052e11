"""The answer: the cells of a run compared, and in words what they show."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from rresnet.analysis import alike, comparison, frames, load, pairing, ranking, rates
from rresnet.analysis.statistics import (
    MINIMUM_REPEATS,
    Interval,
    log_mean_interval,
    repeats_needed,
    variance_components,
)
from rresnet.cell import CELL_COLUMNS
from rresnet.naming import name
from rresnet.quality.states import slow_repeats
from rresnet.terminal import duration, number, percent, ratios

NOT_APART = "~"  # what marks such a speedup
MARKED = f"{NOT_APART}: not distinguishable from the reference."
MOST_NAMED = 3  # of the settings that are not distinguishable from the first


class Answer:
    """The cells of a run on one machine compared, and in words what they show.

    `cells` has the fastest first, those that never ended ok last. Each has, besides the columns of `rates.by_cell`, its
    name (`setting`), the paired ratio to the reference cell (`speedup`, `speedup_low`, `speedup_high`, `pairs`,
    `distinguishable`; None where there is none), and `is_reference`.
    """

    def __init__(self, trials: pd.DataFrame) -> None:
        self._trials, self._floors = trials, comparison.noise_floors(trials)
        self._over = functools.cache(lambda cell_id: pairing.ratios(trials, cell_id, None))
        by_rate = rates.by_cell(trials).sort_values("images_per_second", ascending=False, na_position="last")
        self.cells: list[dict[Any, Any]] = by_rate.to_dict("records")
        self._reference = reference = ranking.reference_cell(self.cells)
        ended = [cell for cell in self.cells if cell["repeats"]]
        self._measured = [cell for cell in ended if not cell["copy"]] or ended
        to_reference = pairing.ratios(trials, None, reference["cell_id"]) if reference else {}
        for cell in self.cells:
            ratio = comparison.with_floor(to_reference.get(cell["cell_id"]), self._floors, cell, reference or cell)
            cell |= {
                "setting": name(cell, self.cells),
                **columns("speedup", ratio),
                "pairs": ratio and ratio.count,
                "distinguishable": ratio and ratio.distinguishable,
                "is_reference": cell is reference,
            }

    def _ratio(self, cell: Mapping[Any, Any], other: Mapping[Any, Any]) -> Interval | None:
        return comparison.with_floor(self._over(cell["cell_id"]).get(other["cell_id"]), self._floors, cell, other)

    @functools.cached_property
    def _first_two(self) -> tuple[dict[Any, Any], dict[Any, Any]]:
        """The first and the second of two or more cells measured."""
        cells = self._measured
        first, second = ranking.first_two(cells, lambda one, other: self._ratio(cells[one], cells[other]))
        return cells[first], cells[second]

    def sentence(self) -> str:
        """State the fastest setting, its lead, and whether it is distinguishable from the second and from the others.

        Only a setting that is distinguishable from the second, and from all others, is called the fastest outright.
        """
        measured = self._measured
        if not measured:
            return "No trial ended ok, so there is no answer: the trials table has the errors."
        if len(measured) == 1:
            only = measured[0]
            return f"The only setting measured: {only['setting']}, {number(only['images_per_second'])} images/s."
        first, second = self._first_two
        lead = self._ratio(first, second)
        by = "Fastest" if first is measured[0] else "Fastest in the repeats that both have"
        rest = [(cell, self._ratio(first, cell)) for cell in measured if cell is not first and cell is not second]
        others = [cell["setting"] for cell, ratio in rest if ratio and ratio.distinguishable is False]
        told = f"{by}{settled(lead, others)}: {first['setting']}, {number(first['images_per_second'])} images/s"
        if lead is None:
            never = f"it was never measured side by side with the second, {second['setting']}"
            return f"{told}; {never}. --fresh measures everything again."
        estimate, *bounds = ratios(lead.estimate, *lead.bounds)
        than = f"{estimate}x the second, {second['setting']}"
        if not bounds:
            few = "With fewer than 3 pairs there is no interval, so it is not known whether they differ"
            return f"{told}. That is {than}. {few}."
        interval = f"95 % interval {' - '.join(bounds)}, {lead.count} pairs"
        return f"{told}. That is {than} ({interval}): {apart_text(lead, others)}."

    def edge(self, what_to_do: str = "") -> list[str]:
        """Say so if the fastest setting has the largest of several batch sizes of it that ended ok."""
        measured = self._measured
        if len(measured) < 2:
            return []
        first, _ = self._first_two
        series = name(first, self.cells, sized=False)
        sizes = {c["batch_size"] for c in measured if name(c, self.cells, sized=False) == series}
        if len(sizes) == 1 or first["batch_size"] < max(sizes):
            return []
        told = f"Batch {first['batch_size']} is the largest measured for {series}"
        axes = [axis for axis in CELL_COLUMNS if axis != "batch_size"]
        of_series = (c for c in self.cells if all(frames.same(c[axis], first[axis]) for axis in axes))
        larger = (c for c in of_series if c["batch_size"] > first["batch_size"])
        failed = min(larger, key=lambda c: c["batch_size"], default=None)
        if failed:  # no larger size ended ok
            told += f" (at {failed['batch_size']} no trial is ok: {failed['statuses']})"
        return [f"{told}; {'a size in between' if failed else 'a larger one'} may be faster{what_to_do}."]

    def scatter(self) -> list[str]:
        """What adds to the interval of the lead, and what it would take to halve it."""
        if len(self._measured) < 2:
            return []
        first, second = self._first_two
        pairs = pairing.paired(self._trials, first["cell_id"], second["cell_id"])
        if len(pairs) < MINIMUM_REPEATS:
            return []
        lead = pairing.series_of(pairs)
        components, half = variance_components(lead), log_mean_interval(lead).reach
        if not half:
            return []
        of_process = components.process_sd if components.processes_differ else None
        of = ((components.repeat_sd, "from repeat to repeat"), (of_process, "from process to process"))
        shares = [f"{percent(sd, 1)} {where}" for sd, where in of if sd]
        scattered = (
            f"The lead over the second scatters by {' and by '.join(shares)} (standard deviation). " if shares else ""
        )
        quiet = pairs[~load.disturbed(pairs)]
        if len(quiet) < len(pairs) and (len(quiet) < MINIMUM_REPEATS or 2 * _spread(quiet) < _spread(pairs)):
            which = f"{len(pairs) - len(quiet)} of these {len(pairs)} pairs"
            advice = "measure again on an idle machine (--retry disturbed)"
            return [f"{scattered}Other work disturbed {which}: {advice}."]
        needed = repeats_needed(lead, half / 2)
        if needed:
            why = "part of its width is room for slow drift, which only a longer run reduces"
            return [f"{scattered}An interval half as wide would take about {needed} repeats; {why}."]
        never = (
            f"that also takes more --processes ({components.processes} so far)"
            if repeats_needed(lead, half / 2, drift_limit=0.0) is None
            else "the rest is room for the machine's slow drift, and a quieter machine would do more"
        )
        return [f"{scattered}More repeats alone would not halve the interval: {never}."]

    def states(self) -> list[str]:
        """Say where machines or environments are mixed or changed, and which speedups depend on the machine's state."""
        trials, reference, slow = self._trials, self._reference, slow_repeats(self._trials)
        told = ", ".join(map(str, sorted({repeat for _, _, repeat in slow})))
        changed = [f"The machine changed: its canary was slow in the rows with repeat {told}."] if slow else []
        lines = [*pairing.unlike_machines(trials), *pairing.mixed(trials), *changed]
        if reference is None:
            return lines
        pairs = pairing.paired(trials, None, reference["cell_id"]).groupby("cell_id")
        for cell in self.cells:
            sides = cell["speedup"] and load.quiet_and_loaded(pairs.get_group(cell["cell_id"]), slow=slow)
            if sides:
                quiet, loaded = (ratio_text(one.estimate, one.low, one.high) for one in sides)
                which = f"{cell['setting']} over {reference['setting']}"
                both = f"{quiet} with the machine quiet, {loaded} with it loaded"
                counts = f"{sides[0].count} and {sides[1].count} repeats"
                lines.append(f"A speedup depends on the machine's state: {which} is {both} ({counts}).")
        return lines

    def noise_floor(self) -> list[str]:
        """For A/A runs: the ratio of each cell to its identical copy, whose true value is 1."""
        floors = self._floors
        if not floors:
            return []
        each = " and ".join(
            percent(floor, 1) + (f" on {device}" if len(floors) > 1 else "") for device, floor in floors.items()
        )
        told = f"a speedup below {each}, the noise floor, is not distinguishable"
        lines = [f"Identical settings against each other (A/A; the true ratio is 1; {told}):"]
        for row in comparison.speedup(self._trials, over="copy", reference=0, allow=alike.COMPARED).to_dict("records"):
            few = "no interval with fewer than 3 pairs"
            interval = few if pd.isna(row["low"]) else f"{row['low']:.3f} - {row['high']:.3f}"
            lines.append(f"  {name({**row, 'copy': 0}, self.cells)}: {row['speedup']:.3f} ({interval})")
        return lines


def settled(lead: Interval | None, others: Sequence[str]) -> str:
    """What to add to a superlative, which claims more than the trials show unless it is distinguishable from all.

    `others` are the settings besides the second from which it is not.
    """
    return "" if lead and lead.distinguishable and not others else ", not settled"


def apart_text(lead: Interval, others: Sequence[str] = ()) -> str:
    """Say whether the first is distinguishable from the second, and from which `others` it is not.

    If nothing but the noise floor keeps the two from being distinguishable, it is named.
    """
    apart, by_floor = lead.distinguishable, replace(lead, floor=None).distinguishable and not lead.distinguishable
    why = f", because identical settings came out up to {percent(lead.floor or 0.0, 1)} apart" if by_floor else ""
    more = f" and {len(others) - MOST_NAMED} more" if len(others) > MOST_NAMED else ""
    rest = f"{', but not' if apart else '; nor'} from {', '.join(others[:MOST_NAMED])}{more}" if others else ""
    return f"{'' if apart else 'not '}distinguishable{why}{rest}"


def _spread(pairs: pd.DataFrame) -> float:
    """Standard deviation of the log ratios."""
    return float(np.log(pairs["ratio"]).std())


def columns(name: str, ratio: Interval | None) -> dict[Any, float | None]:
    """A ratio as columns of a table: `name`, `name_low`, `name_high`; None where there is none."""
    values = (ratio.estimate, ratio.low, ratio.high) if ratio else (None, None, None)
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def formatted(value: Any, form: str) -> str:
    """The value in that form; an empty string if it is null."""
    return "" if pd.isna(value) else form.format(value)


def of_limit(cell: Mapping[Any, Any]) -> str:
    """The cell's share of the machine's matrix rate: on a GPU it can be a fraction of a percent."""
    share = cell["percent_of_limit"]
    return "" if pd.isna(share) else f"{number(share)} %"


def rate(cell: Mapping[str, Any]) -> str:
    """A cell's images a second with its interval."""
    if not cell["repeats"]:
        return "not measured"
    if pd.isna(cell["low"]):
        return number(cell["images_per_second"])
    return f"{number(cell['images_per_second'])} ({number(cell['low'])} - {number(cell['high'])})"


def epoch(cell: Mapping[str, Any], *, interval: bool = False) -> str:
    """How long a cell takes for an epoch, with its interval if asked for, and whether that is projected."""
    if not cell["repeats"]:
        return ""
    seconds = epochs(cell) if interval else duration(cell["epoch_seconds"])
    return seconds + (" projected" if cell["epoch_seconds_kind"] == "projected" else "")


def epochs(cell: Mapping[str, Any], count: int = 1) -> str:
    """How long a cell that was measured takes for so many epochs, with the interval of its rate."""
    known = ("epoch_seconds",) if pd.isna(cell["low"]) else ("epoch_seconds", "epoch_low", "epoch_high")
    seconds, *bounds = (duration(count * cell[column]) for column in known)
    return f"{seconds} ({' - '.join(bounds)})" if bounds else seconds


def speedup(cell: Mapping[str, Any]) -> str:
    """A cell's ratio to the reference, where it was measured; marked where it is not distinguishable from 1."""
    if not cell["repeats"] or cell["is_reference"]:
        return "reference" if cell["is_reference"] else ""
    mark = f"{NOT_APART} " if cell["distinguishable"] is False else ""
    return mark + ratio_text(cell["speedup"], cell["speedup_low"], cell["speedup_high"])


def ratio_text(estimate: float | None, low: float | None, high: float | None, none: str = "no pair") -> str:
    """A ratio with its interval in brackets, where it has one; `none` where it is null."""
    if estimate is None or pd.isna(estimate):
        return none
    if low is None or high is None or pd.isna(low):
        return ratios(estimate)[0]
    return "{} ({} - {})".format(*ratios(estimate, low, high))
