"""Reports as their tests see them: made of a few rows, and read."""

import io
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock

from rich.console import Console

from results import BLOG, TUNED, trials
from rresnet.reporting import report


class Page(HTMLParser):
    """What a test asks of a page: its elements, and the text outside scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.data, self._inside = [], [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script" and data.startswith("{"):
            self.data = data
        elif self._inside not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def made(tmp_path, *folders, figures=True, **options):
    """The report's page, its summary, and what was printed; drawing takes most of the time."""
    console = Console(file=io.StringIO(), width=200)
    with mock.patch.object(report, "MOST_WITH_FIGURES", report.MOST_WITH_FIGURES if figures else 0):
        page = Path(report.write(folders, console, out=tmp_path / "out", **options))
    return Page(page.read_text()), (tmp_path / "out" / "summary.md").read_text(), console.file.getvalue()


def two(**changes):
    """Tuned twice as fast as blog in every one of four repeats, whatever the machine does."""
    return trials((BLOG, [100.0, 110.0, 90.0, 100.0]), (TUNED, [200.0, 220.0, 180.0, 200.0]), **changes)
