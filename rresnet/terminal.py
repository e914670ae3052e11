"""Output to a terminal: text as it is, tables that fit, and numbers and seconds as a person says them."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

UNLIMITED = 10_000  # columns
MOST_DECIMALS = 5  # of a ratio
ALIKE = 100


def say(console: Console, text: str | Iterable[str], style: str | None = None) -> None:
    """Print one or more texts as they are: no markup, no highlighting, and no added line breaks.

    What the output can't hold, such as bytes of a path that are not UTF-8, is printed as its number.
    """
    for one in [text] if isinstance(text, str) else text:
        console.print(_printable(one, console), style=style, markup=False, emoji=False, highlight=False, soft_wrap=True)


def _printable(text: str, console: Console) -> str:
    return text.encode(console.encoding, "backslashreplace").decode(console.encoding)


def print_table(
    console: Console,
    columns: Mapping[str, Sequence[str]],
    *,
    caption: str | None = None,
    left: Collection[str] = (),
    broken: str = "",
    left_out: Sequence[str] = (),
    red: Collection[int] = (),
) -> None:
    """Print a table without cutting off a value.

    In a narrow terminal some columns are left out; if that is not enough, values are broken into several lines.

    Args:
        console: where to print.
        columns: the texts of each column, by heading; all of one length.
        caption: text below the table.
        left: headings of the columns that hold words, aligned left; the others hold numbers, aligned right.
        broken: heading of the column whose texts are broken into lines before any other's.
        left_out: headings of the columns that may be left out, the least missed first.
        red: numbers of the rows to print in red, from 0.
    """
    boundless = console.options.update(max_width=UNLIMITED)
    shown = {heading: [_printable(text, console) for text in texts] for heading, texts in columns.items()}

    def table(*, whole: bool = True) -> Table:
        found = Table(box=box.SIMPLE_HEAD)
        for heading in shown:
            found.add_column(
                heading,
                justify="left" if heading in left else "right",
                no_wrap=whole and heading != broken,
                overflow="fold",
                min_width=len(heading) if heading == broken else None,
            )
        for number, row in enumerate(zip(*shown.values(), strict=True)):
            found.add_row(*map(Text, row), style="red" if number in red else None)
        return found

    def width() -> int:
        return console.measure(table(), options=boundless).maximum

    for heading in left_out:
        if width() > console.width:
            shown.pop(heading, None)
    to_spare = _spare(broken, shown[broken]) if broken in shown else 0
    console.print(table(whole=width() - to_spare <= console.width))
    if caption:
        say(console, caption, "dim italic")


def _spare(heading: str, texts: Sequence[str]) -> int:
    """How much narrower a column becomes when its texts are broken between words."""
    words = [word for text in texts for word in text.split()]
    return max(map(len, [heading, *texts])) - max(map(len, [heading, *words]))


def percent(share: float, digits: int = 0) -> str:
    """Write a share as the project does: 0.198 is 20 %, or 19.8 % with one digit."""
    return f"{share * 100:.{digits}f} %"


def number(value: float) -> str:
    """Write a rate or another amount as a whole number, or with two significant digits under ten."""
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.2g}"


def significant(value: float) -> str:
    """Write an amount with three significant digits, or from a hundred on as a whole number."""
    if not 0 < abs(value) < 99.95:
        return f"{value:,.0f}"
    return f"{Decimal(f'{value:.2e}'):f}"


def ratios(*values: float) -> list[str]:
    """Write ratios with at least two decimals: as many as it takes for two significant digits of each.

    And for a ratio that is not 1 not to read as 1, which would say that two things are not distinguishable. They are
    written alike unless one is `ALIKE` times another: then each has decimals of its own.
    """
    if max(values) > ALIKE * min(values):
        return [text for value in values for text in ratios(value)]
    decimals = 2
    while decimals < MOST_DECIMALS and any(
        value < 9.5 * 10**-decimals or (value != 1 and float(f"{value:.{decimals}f}") == 1) for value in values
    ):
        decimals += 1
    return [f"{value:.{decimals}f}" for value in values]


def counted(count: int, one: str, many: str | None = None) -> str:
    """Write a count with its noun: `one` for 1, else `many`, by default `one` with an s."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """Write seconds as a person says them: 0.02 s, 0.4 s, 12 s, 2 min 05 s, 3 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        digits = 0 if seconds >= 9.95 else 1 if seconds >= 0.095 else 2
        return f"{seconds:.{digits}f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def short_hash(text: str) -> str:
    """Shorten the commit's hash that a text begins with, and keep what follows it; leave other texts as they are."""
    return re.sub("^([0-9a-f]{10})[0-9a-f]{30}", r"\1", text)
