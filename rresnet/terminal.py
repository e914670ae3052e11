"""How things are told in a terminal: text as it is, tables that fit into it, seconds as a person says them."""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table

UNLIMITED = 10_000  # columns


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print text as it is: no markup, no colours of its own, and no line broken where it was not."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


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
    """Print a table without cutting off a value: where the terminal is too narrow, some columns are not shown.

    Args:
        console: where.
        columns: the texts of each, by heading; all of one length.
        caption: what stands below.
        left: headings of the columns that are words; the others are numbers, to the right.
        broken: heading of the column whose texts may be broken into lines.
        left_out: headings of those that the reader can do without, what is least missed first.
        red: the numbers of lines that are to be red.
    """
    boundless = console.options.update(max_width=UNLIMITED)
    shown = dict(columns)
    table = _table(shown, caption, left, broken, red)
    for heading in left_out:
        if console.measure(table, options=boundless).maximum > console.width:
            del shown[heading]
            table = _table(shown, caption, left, broken, red)
    console.print(table)


def _table(
    columns: Mapping[str, Sequence[str]], caption: str | None, left: Collection[str], broken: str, red: Collection[int]
) -> Table:
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    for heading in columns:
        justify: Literal["left", "right"] = "left" if heading in left else "right"
        table.add_column(heading, justify=justify, no_wrap=heading != broken, overflow="fold", min_width=len(heading))
    for number, row in enumerate(zip(*columns.values(), strict=True)):
        table.add_row(*row, style="red" if number in red else None)
    return table


def percent(share: float, digits: int = 0) -> str:
    """A share as the project writes it: 0.198 is 20 %, or 19.8 % to a tenth."""
    return f"{share * 100:.{digits}f} %"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 0.4 s, 12 s, 2 min 05 s, 3 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
