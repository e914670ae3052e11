import io

import pytest
from rich.console import Console
from samples import make_cell

from rresnet import progress
from rresnet.cell import Trial
from rresnet.progress import Progress
from rresnet.tables.measurement import Measurement


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    return found


def shown(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=140)


TRIAL = Trial(cell=make_cell(), repeat=0, process=0)
OK = Measurement(status="ok", images_per_second=1234.5)


def test_plain_output_has_a_line_a_trial_and_the_time_left(clock):
    console = shown(terminal=False)
    with Progress(console, 3) as display:
        display.running(TRIAL)
        clock.now = 50.0  # Ray started meanwhile
        display.finished(TRIAL, OK)
        clock.now = 60.0
        display.finished(TRIAL, OK)
    first, second = console.file.getvalue().splitlines()
    assert first == "1/3  repeat 0  cpu blog batch 8  1,234 img/s  time left not known yet"
    assert second.endswith("about 10 s left")


def test_a_run_that_is_continued_counts_from_where_it_was(clock):
    console = shown(terminal=False)
    with Progress(console, 72, done=10) as display:
        for clock.now in (50.0, 60.0):
            display.finished(TRIAL, OK)
    first, second = console.file.getvalue().splitlines()
    assert first.startswith("11/72  ")
    assert second.startswith("12/72  ")
    assert second.endswith("about 10 min 00 s left")


def test_a_long_trial_speaks_every_half_minute(clock):
    console = shown(terminal=False)
    with Progress(console, 1) as display:
        display.running(TRIAL)
        for clock.now in (10.0, 31.0, 40.0, 62.0):
            display.rate(100.0)
    assert console.file.getvalue().splitlines() == ["0/1  running cpu blog batch 8, repeat 0  100 img/s so far"] * 2


@pytest.mark.parametrize("terminal", [True, False])
def test_a_failure_is_always_a_line_of_its_own(clock, terminal):
    console = shown(terminal)
    with Progress(console, 1) as display:
        display.finished(TRIAL, Measurement(status="error", error_message="it broke\nin two lines"))
    text = console.file.getvalue()
    assert "error: it broke" in text
    assert "in two lines" not in text


def test_a_terminal_shows_the_running_trial(clock):
    console = shown(terminal=True)
    with Progress(console, 2) as display:
        display.running(TRIAL)
        display.rate(321.0)
        display._bar.refresh()
    text = console.file.getvalue()
    assert "cpu blog batch 8, repeat 0" in text
    assert "321 img/s" in text
    assert "0/2" in text


def test_what_is_infeasible_tells_nothing_of_the_time_that_is_left(clock):
    console = shown(terminal=False)
    impossible = Measurement(status="infeasible", error_message="no GPU")
    with Progress(console, 5) as display:
        for clock.now, outcome in ((1.0, impossible), (50.0, OK), (50.0, impossible), (60.0, OK)):
            display.finished(TRIAL, outcome)
    lines = console.file.getvalue().splitlines()
    assert [line.endswith("time left not known yet") for line in lines] == [True, True, True, False]
    assert lines[-1].endswith("about 10 s left")
