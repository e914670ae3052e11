"""Text as it is, and tables that fit into the terminal."""

import io

import pytest
from rich.console import Console

import rresnet
from rresnet.analysis import answer
from rresnet.terminal import duration, print_table, say


def shown(width):
    return Console(file=io.StringIO(), width=width)


def test_what_a_program_says_is_printed_as_it_is():
    console = shown(140)
    text = "[enforce fail at alloc_cpu.cpp:118] can't open [/usr/lib/a] " + "long " * 50
    say(console, text)
    assert console.file.getvalue() == f"{text}\n"


COLUMNS = {"name": ["a long name"], "rate": ["123 (100 - 150)"], "more": ["12 %"], "least": ["memory"]}


@pytest.mark.parametrize(
    ("width", "seen"),
    [(60, "name rate more least"), (45, "name rate more"), (38, "name rate")],
)
def test_a_narrow_terminal_shows_fewer_columns_and_whole_values(width, seen):
    console = shown(width)
    print_table(console, COLUMNS, left=["name"], broken="name", left_out=["least", "more"])
    heading, _, row = (line for line in console.file.getvalue().splitlines() if line.strip())
    assert heading.split() == seen.split()
    assert "123 (100 - 150)" in row
    assert "a long name" in row


def test_where_nothing_more_can_be_left_out_words_are_broken():
    console = shown(30)
    print_table(console, COLUMNS, left=["name"], broken="name", left_out=["least", "more"])
    assert "…" not in console.file.getvalue()
    assert [line.split()[0] for line in console.file.getvalue().splitlines()[-3:-1]] == ["a", "name"]


@pytest.mark.parametrize("width", [80, 100, 140])
def test_no_value_of_the_answer_is_cut_off(width):
    console = shown(width)
    answer.findings(rresnet.read("results/reference").trials, console)
    table = console.file.getvalue().partition("Speedup over")[0]
    assert "…" not in table
    assert "cpu tuned batch 256" in table
    assert "2.91 (2.55 - 3.33)" in table
    assert ("memory" in table) == (width == 140)


def test_durations_read_as_a_person_says_them():
    assert [duration(s) for s in (0.4, 59, 60, 3599, 3600, 11_400)] == [
        "0.4 s", "59 s", "1 min 00 s", "59 min 59 s", "1 h 00 min", "3 h 10 min",
    ]  # fmt: skip
