"""Text as it is, and tables that fit into the terminal."""

import io
import os

import pytest
from rich.console import Console

import rresnet
from results import trials, write
from rresnet.experiments import printing
from rresnet.terminal import counted, duration, print_table, ratios, say, significant


def shown(width):
    return Console(file=io.StringIO(), width=width)


def test_what_a_program_says_is_printed_as_it_is():
    console = shown(140)
    text = "[enforce fail at alloc_cpu.cpp:118] can't open [/usr/lib/a:car:b] " + "long " * 50
    say(console, text)
    assert console.file.getvalue() == f"{text}\n"


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ((1.36, 1.06, 1.761), ["1.36", "1.06", "1.76"]),
        ((1.0,), ["1.00"]),
        ((1.01, 1.00005, 1.03), ["1.0100", "1.0001", "1.0300"]),  # above 1, and says so
        ((0.996, 0.991, 0.9996), ["0.9960", "0.9910", "0.9996"]),
        ((0.0512, 0.0507, 0.0518), ["0.051", "0.051", "0.052"]),
        ((12.25, 10.12, 14.83), ["12.25", "10.12", "14.83"]),
        ((1.1944, 0.0076, 186.5), ["1.19", "0.0076", "186.50"]),  # too far apart to be written alike
        ((1 + 1e-9,), ["1.00000"]),
    ],
)
def test_a_ratio_that_is_not_1_does_not_read_as_1(values, texts):
    assert ratios(*values) == texts


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.59e-5, "0.0000159"), (0.00619, "0.00619"), (9.999, "10.0"), (99.96, "100"), (2380.4, "2,380")],
)
def test_an_amount_is_never_a_power_of_ten(value, text):
    assert significant(value) == text


def test_a_path_that_is_no_utf_8_is_printed_all_the_same():
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    say(Console(file=printed, width=140), os.fsdecode(b"Rows: caf\xe9/trials"))
    printed.seek(0)
    assert printed.read() == "Rows: caf\\udce9/trials\n"


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
    assert "123 (100 - 150)" in console.file.getvalue()  # a number is not, as long as words will do
    assert [line.split()[0] for line in console.file.getvalue().splitlines()[-3:-1]] == ["a", "name"]


def test_where_breaking_words_is_not_enough_numbers_are_broken_too_and_nothing_is_lost():
    console = shown(18)
    print_table(console, {"name": ["n"], "rate": ["27,015 (18,928 - 38,559)"]}, left=["name"], broken="name")
    found = "".join(line[8:].strip() for line in console.file.getvalue().splitlines()[3:])
    assert found.replace(" ", "") == "27,015(18,928-38,559)"


def test_what_looks_like_markup_is_told_as_it_is():
    console = shown(60)
    print_table(console, {"name": ["photos [v1]", "[/x]"]}, left=["name"])
    assert "photos [v1]" in console.file.getvalue()
    assert "[/x]" in console.file.getvalue()


def test_what_the_output_can_not_hold_is_told_by_its_number():
    file = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    console = Console(file=file, width=60)
    say(console, "1.2 % ± 3: 日 \udcff")
    print_table(console, {"name": ["日é"]}, left=["name"])
    file.flush()
    said = file.buffer.getvalue().decode("latin-1")
    assert said.startswith("1.2 % ± 3: \\u65e5 \\udcff\n")
    assert "\\u65e5é" in said


def test_a_table_without_rows_has_headings():
    console = shown(60)
    print_table(console, {"name": [], "rate": []}, left_out=["rate", "rate"])
    assert "name" in console.file.getvalue()


@pytest.mark.parametrize("width", [80, 100, 140])
def test_no_value_of_the_answer_is_cut_off(width):
    console = shown(width)
    printing.findings(rresnet.read("results/reference").trials, console)
    table = console.file.getvalue().partition("Speedup over")[0]
    rows = [line for line in table.splitlines() if line.startswith("  cpu")]
    assert len(rows) == 6
    assert "cpu tuned batch 256   552 (466 - 654)" in rows[0]
    assert "3.84 (3.27 - 4.51)" in rows[0]
    assert all(row.rstrip().endswith("12 ok") for row in rows)
    assert ("compute" in table) == (width == 140)


def test_durations_read_as_a_person_says_them():
    assert [duration(s) for s in (0.02, 0.4, 59, 60, 3599, 3600, 11_400)] == [
        "0.02 s", "0.4 s", "59 s", "1 min 00 s", "59 min 59 s", "1 h 00 min", "3 h 10 min",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((1, "trial"), "1 trial"),
        ((0, "trial"), "0 trials"),
        ((2, "process", "processes"), "2 processes"),
        ((1, "process", "processes"), "1 process"),
    ],
)
def test_things_are_counted_in_words(words, told):
    assert counted(*words) == told


@pytest.mark.parametrize("workers", [1, 2])
def test_where_a_setting_has_several_workers_it_is_said_whose_batch_sizes_these_are(workers, tmp_path):
    console = shown(200)
    cells = [({"num_workers": n}, [100.0 * n] * 3) for n in {1, workers}]
    write(tmp_path, trials(*cells))
    printing.findings(rresnet.read(tmp_path).trials, console)
    assert ("Batch sizes are those of each worker." in console.file.getvalue()) == (workers > 1)
