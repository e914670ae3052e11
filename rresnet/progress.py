"""What a person sees during a run: a live line on a terminal, elsewhere a plain line per trial."""

import functools
import time
from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column

from rresnet import naming
from rresnet.cell import Cell, Trial
from rresnet.tables.measurement import Measurement
from rresnet.terminal import duration, number, say

QUIET_SECONDS = 30.0  # where there is no live line, a long trial prints its speed about this often


class Progress:
    """Context manager that shows the trials of a run as they start, report and end."""

    def __init__(self, console: Console, total: int, done: int = 0, cells: Iterable[Cell] = ()) -> None:
        """Start with `done` of `total` trials already run, which is above 0 in a continued run.

        What tells a cell from the other `cells` names it, as in the table at the end.
        """
        others = [vars(cell) for cell in cells]
        self._name = functools.cache(lambda cell: naming.name(vars(cell), [*others, vars(cell)]))
        self._console, self._total, self._done, self._measured = console, total, done, 0
        self._first_end: float | None = None
        self._last_line, self._cell = time.monotonic(), ""
        self._bar = RichProgress(
            TextColumn("[bold]{task.fields[cell]}"),
            TextColumn("{task.fields[rate]}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=len(f"{total}/{total}"))),
            TextColumn("trials, {task.fields[left]}"),
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(
            "", total=total, completed=done, cell="starting", rate="", left="time left not known yet"
        )

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._bar.stop()

    def more(self, trials: int, why: str) -> None:
        """Add so many trials to the plan, and say why."""
        self._total += trials
        self._bar.update(self._task, total=self._total)
        self.note(why)

    def note(self, text: str, style: str | None = None) -> None:
        """Print something that a person should know during the run."""
        say(self._console, text, style)
        self._last_line = time.monotonic()

    def running(self, trial: Trial) -> None:
        """Show that a trial starts."""
        self._cell = f"{self._name(trial.cell)}, repeat {trial.repeat}"
        self._bar.update(self._task, cell=self._cell, rate="")  # until now, the last trial's

    def rate(self, images_per_second: float) -> None:
        """Show the running trial's speed so far."""
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= QUIET_SECONDS:
            self.note(f"{self._done}/{self._total}  running {self._cell}  {number(images_per_second)} img/s so far")
        self._bar.update(self._task, rate=f"{number(images_per_second)} img/s")

    def finished(self, trial: Trial, measurement: Measurement) -> None:
        """Count a trial that has its row, and show how it ended."""
        self._done += 1
        self._measured += measurement.status != "infeasible"  # which takes no time, and says nothing about the rest
        ok = measurement.status == "ok"
        rate = measurement.images_per_second
        speed = f"{measurement.status}: {measurement.error_message}" if rate is None else f"{number(rate)} img/s"
        left = self._time_left()
        self._bar.update(self._task, completed=self._done, rate=speed if ok else "", left=left)
        if not self._console.is_terminal or not ok:
            which = f"repeat {trial.repeat}  {self._name(trial.cell)}"
            line = f"{self._done}/{self._total}  {which}  {speed.splitlines()[0]}  {left}"
            self.note(line, style=None if ok else "red")

    def _time_left(self) -> str:
        now = time.monotonic()
        if self._measured and self._first_end is None:
            self._first_end = now
        if self._first_end is None or self._measured < 2:  # the first includes Ray's start: no guide
            return "time left not known yet"
        if self._done >= self._total:
            return "none left"
        seconds = (now - self._first_end) / (self._measured - 1) * (self._total - self._done)
        return f"about {duration(seconds)} left"
