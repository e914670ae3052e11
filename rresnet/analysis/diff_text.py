"""A diff as text, Markdown or JSON."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Literal

from rresnet.analysis.diff import Change, Diff
from rresnet.analysis.statistics import DRIFT_PER_SCATTER, RATE_DRIFT_LIMIT
from rresnet.terminal import percent, ratios

Format = Literal["text", "markdown", "json"]
HEADINGS = ("setting", "machine", "B / A", "95 % interval", "verdict")


def render(diff: Diff, format: Format, *, share: float | None = None) -> str:
    """Render the diff in a format; with a `share`, also name the regressions by more than that."""
    return _FORMATS[format](diff, share)


def _json(diff: Diff, share: float | None) -> str:
    found = asdict(diff)
    if share is not None:
        found |= {"fail_on_regression": share, "regressions": [c.setting for c in diff.regressions(share)]}
    return json.dumps(found, indent=1)


def _markdown(diff: Diff, share: float | None) -> str:
    rows = [HEADINGS, ["---"] * len(HEADINGS), *map(_cells, diff.changes)]
    table = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    title = f"**{diff.b}** (B) against **{diff.a}** (A), images a second:"
    return "\n\n".join([title, "\n".join(table), *(f"- {line}" for line in _remarks(diff, share))])


def _text(diff: Diff, share: float | None) -> str:
    rows = [HEADINGS, *map(_cells, diff.changes)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    title = f"{diff.b} (B) against {diff.a} (A), images a second"
    return "\n".join([title, *table, *_remarks(diff, share)])


def _cells(change: Change) -> list[str]:
    known = [value for value in (change.ratio, change.low, change.high) if value is not None]
    ratio, *bounds = ratios(*known) if known else [""]
    of_a, of_b = change.ok
    repeats = f"{change.repeats} repeats" if of_a == of_b else f"A {of_a}, B {of_b} trials"
    interval = f"{' - '.join(bounds)}, {repeats}" if bounds else ""
    return [change.setting, change.machine, ratio, interval, change.verdict]


def _remarks(diff: Diff, share: float | None) -> list[str]:
    """What a table can't hold: what is compared with what, and what is not compared at all."""
    verdicts = [change.verdict for change in diff.changes]
    lines = [", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts)) + "."]
    floors = dict.fromkeys((percent(c.floor, 1), c.machine) for c in diff.changes if c.floor is not None)
    one = len({floor for floor, _ in floors}) == 1
    if most := " and ".join(dict.fromkeys(floor if one else f"{floor} on {machine}" for floor, machine in floors)):
        lines.append(
            f"Noise floor: identical settings came out up to {most} apart; a smaller difference is not distinguishable."
        )
    lines += [f"Different in A vs B: {what}." for what in diff.differs]
    for which, settings in (("A", diff.only_a), ("B", diff.only_b)):
        lines += [f"Only in {which}, so not compared: {'; '.join(settings)}."] if settings else []
    disturbed = [f"{c.setting} (A {c.disturbed[0]}, B {c.disturbed[1]})" for c in diff.changes if any(c.disturbed)]
    lines += [f"Trials that other work disturbed: {'; '.join(disturbed)}."] if disturbed else []
    lines.append(
        "The runs were not measured side by side. The intervals have room for a drift of the machine between them "
        f"of up to {DRIFT_PER_SCATTER:g} times the scatter of repeats, and of {percent(RATE_DRIFT_LIMIT)} at most; "
        "more would look like a difference of what was measured. To be sure, repeat both runs in turn."
    )
    single = [c.setting for c in diff.changes if c.low is not None and c.processes == 1]
    if single:
        told = "" if len(single) == len(diff.changes) else f" of {'; '.join(single)}"
        lines.append(
            f"One side{told} ran in a single process, which may explain the difference: give --processes 3 or more."
        )
    if share is not None:
        found = diff.regressions(share)
        named = ", ".join(f"{c.setting} ({c.verdict}{f', {ratios(c.ratio)[0]}' if c.ratio else ''})" for c in found)
        lines.append(f"Regressions by more than {share * 100:g} %: {named or 'none found'}.")
        unsure = [c.setting for c in diff.changes if c.verdict == "worse" and not c.sure]
        lines += [f"Worse, but with so many settings this may be chance: {'; '.join(unsure)}."] if unsure else []
    return lines


_FORMATS: dict[Format, Callable[[Diff, float | None], str]] = {"text": _text, "markdown": _markdown, "json": _json}
