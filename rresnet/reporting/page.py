"""A report as HTML and as Markdown: the words and figures of its parts in templates, with everything escaped."""

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from rresnet import __version__
from rresnet.analysis import answer, load
from rresnet.figures import drawing
from rresnet.reporting import rows
from rresnet.reporting.parts import Part
from rresnet.reporting.section import MOST_LINES, Section
from rresnet.tables.measurement import Environment
from rresnet.terminal import counted

TEMPLATES = Path(__file__).parent / "templates"
WORDS = ("setting", "bound by", "trials")  # the columns that are aligned left
HEADINGS = ("setting", "images/s", "epoch", "speedup", "of limit", "bound by", "peak memory", "trials", "test accuracy")
# Backslash escapes, and entities for what could begin an element or end a table's cell.
MARKDOWN = str.maketrans({c: f"&#{ord(c)};" if c in "<>|&" else f"\\{c}" for c in "<>|&\\`*_{}[]~#"})


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """A part with what was found in it."""

    number: int  # from 1, as in the table of all rows
    part: Part
    answers: Sequence[str]  # what was found, in sentences: the ladder's climbs, or the fastest setting
    edge: Sequence[str]  # says so if the fastest setting has the largest batch size that ended ok
    remarks: Sequence[str]  # how its ratio scatters, what more workers bring, and where the machine changed
    cells: pd.DataFrame  # of its `Answer`
    sections: Sequence[Section]
    without_figures: bool  # an older run, whose figures are left out

    @property
    def reference(self) -> str | None:
        """The setting that the others are compared with; None where none was measured."""
        names = self.cells.loc[self.cells["is_reference"], "setting"]
        return next(iter(names), None)

    @property
    def mark(self) -> str:
        """What the mark at some of its speedups means; empty where none has one."""
        return answer.MARKED if self.cells["distinguishable"].eq(False).any() else ""

    @property
    def columns(self) -> int:
        """How many of `HEADINGS` its settings have texts for: the last one only if accuracies were evaluated."""
        return len(HEADINGS) if self.cells["test_accuracy"].notna().any() else len(HEADINGS) - 1

    @property
    def title(self) -> str:
        """Its experiment, the name that it was given, its machine, and when it started."""
        when, given = self.part.started_at, self.part.given_name
        what = f"{given} ({self.part.experiment})" if given else self.part.experiment
        return f"{what} on {self.part.machine}" + (f", {when:%d %b %Y %H:%M} UTC" if when else "")


def lead(chapters: Sequence[Chapter], decisions: Sequence[str]) -> list[str]:
    """What a report says first: the decisions over all chapters, and the newest one's answer and doubts."""
    newest, *more = [*chapters[0].answers, *chapters[0].edge, *chapters[0].part.doubts]
    if len(chapters) == 1:
        return [newest, *decisions, *more]
    return [*decisions, f"The newest of {covered(chapters)}, {chapters[0].title}: {newest}", *more]


def covered(chapters: Sequence[Chapter]) -> str:
    """How many runs there are, of one machine; of several, how many runs and machines."""
    machines = len({chapter.part.machine for chapter in chapters})
    return counted(len(chapters), "run") if machines == 1 else f"{len(chapters)} runs and machines"


def html(chapters: Sequence[Chapter], *, decisions: Sequence[str], made: datetime) -> str:
    """The whole report as one self-contained page; `decisions` are sentences about all chapters together."""
    css, script = ((TEMPLATES / name).read_text("utf-8") for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _template("report.html").render(
        chapters=chapters,
        covered=covered(chapters),
        decisions=decisions,
        fastest=[line for line in decisions if line.startswith("Fastest")] if len(chapters) > 1 else [],
        made=made,
        css=Markup(css),  # nosec B704 - the package's own file
        script=Markup(script),  # nosec B704 - the same
        script_hash=digest,
        rows=Markup(rows.dumps(rows.encode([_named(chapter) for chapter in chapters]))),  # nosec B704 - escaped there
        total=sum(len(chapter.part.trials) for chapter in chapters),
    )


def markdown(chapters: Sequence[Chapter], *, decisions: Sequence[str]) -> str:
    """What to paste in a pull request: the answers, the settings, and what makes them doubtful."""
    return _template("summary.md").render(chapters=chapters, decisions=decisions)


def _named(chapter: Chapter) -> pd.DataFrame:
    names = chapter.cells.set_index("cell_id")["setting"]
    return chapter.part.trials.assign(setting=chapter.part.trials["cell_id"].map(names))


def setting_row(cell: Mapping[str, Any]) -> tuple[str, ...]:
    """A cell's texts, one for each of `HEADINGS`."""
    return (
        cell["setting"],
        answer.rate(cell),
        answer.epoch(cell, interval=True),
        answer.speedup(cell),
        answer.of_limit(cell),
        answer.formatted(cell["bottleneck"], "{}"),
        answer.formatted(cell["peak_memory_bytes"] / 2**20, "{:,.0f} MiB"),
        cell["statuses"],
        answer.formatted(cell["test_accuracy"], "{:.3f}"),
    )


def failures(part: Part) -> list[tuple[str, str, str, int]]:
    """Each way in which trials failed: status, error, its first line, how many."""
    failed = part.trials[part.trials["status"] != "ok"]
    messages = failed["error_message"].fillna("").map(lambda text: text.strip().partition("\n")[0][:300])
    ways = Counter(zip(failed["status"], failed["error_type"].fillna(""), messages, strict=True))
    return [(*way, count) for way, count in ways.most_common(20)]


def environment(part: Part) -> list[tuple[str, str]]:
    """Where and with what the part ran; several values where its rows differ."""
    names = [f.name for f in fields(Environment)]
    found = [(name, part.trials[name].dropna().unique()) for name in names]
    return [(name.replace("_", " "), ", ".join(map(str, values))) for name, values in found if len(values)]


def svg(section: Section, chapter: Chapter) -> Markup:
    """The section's figure as an element of the page."""
    name = f"f{chapter.number}-{section.key}"
    title = f"{section.title}: {chapter.title}"
    drawn = drawing.inline(section.svg, name=name, title=title, description=section.description)
    return Markup(drawn)  # nosec B704 - it writes XML, which escapes


def csv(section: Section) -> str:
    """The data of the section's figure as a data URL of a CSV file."""
    content = base64.b64encode(section.data.to_csv(index=False).encode("utf-8", "replace")).decode()
    return f"data:text/csv;charset=utf-8;base64,{content}"


def _markdown_text(text: object) -> str:
    """Data as one line of Markdown, in which none of its characters is markup."""
    return " ".join(str(text).split()).translate(MARKDOWN)


def _template(name: str) -> jinja2.Template:
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(),  # in HTML, not in Markdown
        trim_blocks=True,
        keep_trailing_newline=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    found.globals.update(flagged=load.flagged, failures=failures, environment=environment, svg=svg, csv=csv)
    found.globals.update(version=__version__, headings=HEADINGS, words=WORDS, most=MOST_LINES)
    found.filters.update(row=setting_row, md=_markdown_text)
    return found.get_template(name)
