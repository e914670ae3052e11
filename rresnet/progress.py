"""What a person sees while a run goes on: a live line on a terminal, a plain line a trial elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column

from rresnet.cell import Trial
from rresnet.tables.measurement import Measurement
from rresnet.terminal import duration, number, say

QUIET_SECONDS = 30.0  # a long trial says something at least this often where there is no live line


class Progress:
    """Shows the trials of a run as they start, report and end. A context manager."""

    def __init__(self, console: Console, total: int, done: int = 0) -> None:
        """Of `total` trials so many are `done`, by a run that is continued."""
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
        """So many trials are added to the plan."""
        self._total += trials
        self._bar.update(self._task, total=self._total)
        self.note(why)

    def note(self, text: str, style: str | None = None) -> None:
        """Something that a person should know meanwhile."""
        say(self._console, text, style)
        self._last_line = time.monotonic()

    def running(self, trial: Trial) -> None:
        """A trial starts."""
        self._cell = f"{trial.cell.label()}, repeat {trial.repeat + 1}"
        self._bar.update(self._task, cell=self._cell, rate="")  # what is there is the trial's before

    def rate(self, images_per_second: float) -> None:
        """The running trial tells its speed so far."""
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= QUIET_SECONDS:
            self.note(f"{self._done}/{self._total}  running {self._cell}  {number(images_per_second)} img/s so far")
        self._bar.update(self._task, rate=f"{number(images_per_second)} img/s")

    def finished(self, trial: Trial, measurement: Measurement) -> None:
        """A trial has its row."""
        self._done += 1
        self._measured += measurement.status != "infeasible"  # that takes no time, and tells nothing of what is left
        ok = measurement.status == "ok"
        rate = measurement.images_per_second
        speed = f"{measurement.status}: {measurement.error_message}" if rate is None else f"{number(rate)} img/s"
        left = self._time_left()
        self._bar.update(self._task, completed=self._done, rate=speed if ok else "", left=left)
        if not self._console.is_terminal or not ok:
            which = f"repeat {trial.repeat + 1}  {trial.cell.label()}"
            line = f"{self._done}/{self._total}  {which}  {speed.splitlines()[0]}  {left}"
            self.note(line, style=None if ok else "red")

    def _time_left(self) -> str:
        now = time.monotonic()
        if self._measured and self._first_end is None:
            self._first_end = now
        if self._first_end is None or self._measured < 2:  # the first carries the start of Ray: it tells nothing
            return "time left not known yet"
        seconds = (now - self._first_end) / (self._measured - 1) * (self._total - self._done)
        return f"about {duration(seconds)} left"
