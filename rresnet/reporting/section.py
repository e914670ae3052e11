"""One section of a report: a question, how to read its figure, the figure and its data."""

from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd
from matplotlib.figure import Figure

from rresnet.figures import drawing

MOST_LINES = 40  # settings in a figure; more can't be read


def left_out(count: int) -> tuple[str, ...]:
    """Say so if of `count` settings, sorted by speed, a figure has only the first `MOST_LINES`."""
    return (f"The {MOST_LINES} fastest of {count} settings are drawn.",) if count > MOST_LINES else ()


@dataclass(frozen=True, kw_only=True)
class Section:
    """One question, and what the rows say about it."""

    key: str
    title: str
    reading: str = ""  # how to read the figure
    findings: tuple[str, ...] = ()
    figure: Figure | None = None
    data: pd.DataFrame = field(default_factory=pd.DataFrame)  # of the figure
    absent: str = ""  # why there is nothing to show

    @cached_property
    def svg(self) -> bytes:
        """The figure as an SVG file, drawn once."""
        assert self.figure is not None
        return drawing.svg(self.figure)

    @property
    def description(self) -> str:
        """The figure in words, for people who can't see it."""
        return " ".join([self.reading, *self.findings])
