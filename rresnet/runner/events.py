"""A trial process as the driver knows it: turns Tune's events about it into calls of the lane."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.air._internal import usage

from rresnet.cell import Trial
from rresnet.runner.failures import death
from rresnet.tables.measurement import Measurement, Record

if TYPE_CHECKING:
    from rresnet.runner.lane import Lane

# Tune counts callbacks by kind for usage statistics, which are off, and for that imports MLflow where it is installed:
# this would take seconds before the first trial.
usage.tag_callbacks = lambda callbacks: False
START_SECONDS = 600.0  # to import what a process needs and start its workers, on a slow or busy machine


class TrialProcess(tune.Callback):  # type: ignore[misc]  # Ray leaves it untyped
    """A trial process, as Tune reports on it."""

    def __init__(self, lane: "Lane", attempt: int) -> None:
        self._lane = lane
        self.attempt = attempt  # the attempt of its trials, not counting those lost with their machines
        self._process_id: int | None = None  # None until it has reported it
        self._kills = lane.machine.kills_for_memory()  # of the machine, for want of memory, when the trial began
        self._started: float | None = None
        self._ended: Trial | None = None  # the latest trial that has its row or is to be tried again
        self.begun: Trial | None = None  # the latest trial that has begun
        self.ended = False
        self._actor: Any = None  # Ray's handle of it
        self._heard = 0.0  # when it last gave a sign of life
        self._silent: str | None = None  # how long it gave none, if it was ended for that

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles callbacks so that it can restore them; we restore from our own rows."""
        return {}

    @property
    def running(self) -> Trial | None:
        """The trial that has begun and not ended."""
        return None if self.begun is self._ended else self.begun

    @property
    def killed_for_memory(self) -> bool:
        """Whether the kernel has killed a process of the machine for want of memory since the trial began."""
        return self._lane.machine.kills_for_memory() > self._kills

    def on_step_begin(self, iteration: int, trials: Any, **info: Any) -> None:
        """Check whether the run is to end, the machine is gone, or the process no longer gives a sign of life."""
        self._lane.check()
        if self.running and not self._silent:
            self._end_if_silent(self.running)

    def _end_if_silent(self, trial: Trial) -> None:
        """End a process that its own watchdog does not end: it hangs before a trial's clock runs, or was stopped."""
        limit = START_SECONDS
        if self._process_id:  # the trial's clock may run
            limit += self._lane.sweep.how.process_limit_seconds(trial.cell)
        if time.monotonic() - self._heard > limit:
            self._silent = f"the trial process gave no sign of life for {limit:g} s and was ended"
            ray.kill(self._actor)

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Note that a trial begins in the process, which may have to be started first."""
        self.begun, self._actor, self._heard = trial.planned, trial.temporary_state.ray_actor, time.monotonic()
        self._started = time.monotonic() if self._process_id else None  # a new process reports when it is ready
        self._kills = self._lane.machine.kills_for_memory()
        self._lane.sweep.progress.running(trial.planned)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Handle a report of the trial: its process, workers that it starts, its speed so far, or its outcome."""
        self._heard = time.monotonic()
        if "outcome" in result:
            self._ended = trial.planned
            record, alone = result["outcome"]
            self._lane.ended(self, trial.planned, record, alone=alone)
        elif "process_id" in result:
            self._started, self._process_id = time.monotonic(), result["process_id"]
        elif "workers_to_start" in result:
            self._lane.sweep.progress.note(f"starting {result['workers_to_start']} workers, which takes 10 s or more")
        elif "images_per_second" in result:
            self._lane.sweep.progress.rate(result["images_per_second"])

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Handle the end of the process: on purpose after a trial's row, or together with the trial."""
        self.ended = True
        if trial.planned is self._ended:  # it had its row; the process was ended on purpose
            return
        self.begun = self._ended = trial.planned  # it has not begun if the process ended while it started
        text = Path(trial.error_file).read_text() if trial.error_file else "the trial process ended without a word"
        self._lane.ended(self, trial.planned, self.death(trial.planned, text), alone=self.attempt > 1)

    def death(self, trial: Trial, text: str) -> Record:
        """What is known of the trial with which the process has ended; `text` is Ray's account of it."""
        elapsed = time.monotonic() - self._started if self._started else 0.0
        found = death(text, elapsed, self._lane.sweep.how.process_limit_seconds(trial.cell))
        if self._silent:
            found = Measurement(status="timeout", error_type="TimeoutError", error_message=self._silent)
        return Record(measurement=replace(found, output_tail=self._lane.machine.output_tail(self._process_id)))
