"""`rresnet report`: one HTML page, its figures as files, and a Markdown summary of the runs in some results folders."""

import re
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from rich.console import Console

from rresnet.analysis import answer, compiling, decision, ladder, scaling
from rresnet.analysis.costs import costs as costs_of
from rresnet.analysis.prices import Price, used
from rresnet.analysis.prices import prices as read_prices
from rresnet.config import OF_SIZES
from rresnet.figures import drawing
from rresnet.reporting import page, parts, speed, use
from rresnet.reporting.page import Chapter
from rresnet.reporting.parts import Part
from rresnet.reporting.section import Section
from rresnet.tables import place
from rresnet.tables.place import StoreError
from rresnet.terminal import say

MOST_WITH_FIGURES = 6  # parts; a folder may hold a year of runs


def write(
    folders: Sequence[Path],
    console: Console,
    *,
    out: place.Location | None = None,
    runs: Sequence[str] = (),
    prices: Sequence[str] = (),
) -> str:
    """Write the report, print where it is, and return the path or URL of its page.

    `out` is a folder or URL, by default `report` in the first results folder; `runs` are ids, by default those of all
    runs; `prices` are texts as `prices.prices` takes them.

    Raises:
        UsageError, StoreError: a folder, run or price is not there, or `out` can't be written to.
    """
    given_prices, own = read_prices(prices), parts.read(folders, runs)
    decisions = _decisions(own, given_prices)
    searched = {(part.machine, part.trained) for part in own if part.experiment.endswith(OF_SIZES)}
    chapters = [_chapter(number, part, given_prices, searched) for number, part in enumerate(own, start=1)]
    summary = page.markdown(chapters, decisions=decisions)
    whole = page.html(chapters, decisions=decisions, made=datetime.now(UTC))
    drawn = {name: content for chapter in chapters for name, content in _figures(chapter).items()}
    texts = {name: text.encode("utf-8", "replace") for name, text in (("summary.md", summary), ("index.html", whole))}
    to = place.at(out or folders[0] / "report")
    try:
        for name, content in (drawn | texts).items():
            to.write(name, content)
    except OSError as error:
        raise StoreError(f"can't write to {to.full_name('')}: {to.reason(error)}; choose another --out") from error
    first = page.lead(chapters, decisions) if chapters else ["There are no trials in these results."]
    told = f"Report: {to.full_name('index.html')}; beside it summary.md and the figures."
    say(console, [*first, told])
    return to.full_name("index.html")


def _decisions(own: Sequence[Part], prices: Sequence[Price]) -> list[str]:
    """The verdicts over all of the user's own parts; for a single part not on the fastest, which its chapter names."""
    if not own:
        return []
    trials = pd.concat([part.trials for part in own], ignore_index=True)
    verdicts = decision.verdicts(trials, prices)
    wanted = verdicts if len(own) > 1 else [verdict for verdict in verdicts if verdict.question != "fastest"]
    unused = [price.what for price in prices if price not in used(trials, prices)]
    told = [f"No trial takes the price given for: {', '.join(unused)}."] if unused else []
    return [*(verdict.sentence() for verdict in wanted), *told]


def _chapter(number: int, part: Part, prices: Sequence[Price], searched: Collection[tuple[str, str]]) -> Chapter:
    """The chapter on a part; `searched` says on which machines, for what, larger batch sizes were looked for."""
    found, is_ladder = answer.Answer(part.trials), part.experiment == "ladder"
    climbs = ladder.summary(ladder.rungs(part.trials)) if is_ladder else []
    scatter = [] if is_ladder else found.scatter()  # a ladder's answer is another ratio
    axes = [*scaling.summary(part.trials), *compiling.summary(part.trials)]
    cells, without = pd.DataFrame(found.cells), number > MOST_WITH_FIGURES
    return Chapter(
        number=number,
        part=part,
        answers=climbs or [found.sentence()],
        edge=[] if is_ladder or (part.machine, part.trained) in searched else found.edge(),
        remarks=[*scatter, *axes, *found.states()],
        cells=cells,
        sections=[] if without else sections(part, cells, prices),
        without_figures=without,
    )


def sections(part: Part, cells: pd.DataFrame, prices: Sequence[Price]) -> list[Section]:
    """The sections of a part in order, including those with nothing to show; `cells` are its `Answer`'s."""
    measured = cells[(cells["repeats"] > 0) & (cells["copy"] == 0)].reset_index(drop=True)
    if measured.empty:
        return []
    first_copies = part.trials[part.trials["copy"] == 0]
    costs = costs_of(first_copies, used(first_copies, prices))  # the others are for other parts of the report
    return [
        speed.speedups(measured),
        speed.batch_sizes(part, measured),
        *([speed.climbs(part)] if part.experiment == "ladder" else []),
        use.time(part, measured),
        use.clocks(part, measured),
        use.limit(measured),
        speed.learning(part, measured),
        use.memory(measured),
        use.energy(measured, costs),
        use.cost(costs, prices),
    ]


def _figures(chapter: Chapter) -> dict[str, bytes]:
    of = re.sub(r"[^\w.-]", "_", f"{chapter.part.run_id}-{chapter.part.machine}")
    return {
        name: content
        for section in chapter.sections
        if section.figure
        for name, content in drawing.files(section.figure, f"{section.key}-{of}", section.svg).items()
    }
