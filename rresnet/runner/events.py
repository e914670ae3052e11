"""A trial process as the driver knows it: Tune's events of it, as calls of the lane."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.air._internal import usage

from rresnet.cell import Trial

if TYPE_CHECKING:
    from rresnet.runner.lane import Lane

# Tune counts callbacks by their kind for usage statistics, which are off, and imports MLflow for it where that is
# installed: seconds before the first trial.
usage.tag_callbacks = lambda callbacks: False


class TrialProcess(tune.Callback):  # type: ignore[misc]  # Ray leaves it untyped
    """A trial process, as Tune tells of it."""

    def __init__(self, lane: "Lane", attempt: int) -> None:
        self._lane = lane
        self.attempt = attempt  # that its trials are, but for those lost with their machines
        self._process_id: int | None = None  # once it has said so
        self._kills = 0  # for want of memory, when the trial began
        self._started: float | None = None
        self._ended: Trial | None = None  # the latest that has its row, or is to be tried again
        self.begun: Trial | None = None  # the latest
        self.ended = False

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks beside the experiment, for a restore that we do from our own rows."""
        return {}

    @property
    def running(self) -> Trial | None:
        """The trial that has begun and not ended."""
        return None if self.begun is self._ended else self.begun

    @property
    def killed_for_memory(self) -> bool:
        """Whether the kernel has killed for want of memory, it or a worker, since the trial began."""
        return self._lane.machine.kills_for_memory() > self._kills

    @property
    def output_tail(self) -> str | None:
        """The end of what it has printed; None where that is not known."""
        return self._lane.machine.output_tail(self._process_id)

    def on_step_begin(self, iteration: int, trials: Any, **info: Any) -> None:
        """Look whether the run is to end, or the machine is gone."""
        self._lane.check()

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial begins in the process, which may have to be started first."""
        self.begun = trial.planned
        self._started = time.monotonic() if self._process_id else None  # a new process tells when it is ready
        self._kills = self._lane.machine.kills_for_memory()
        self._lane.sweep.progress.running(trial.planned)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """A trial has told its process, its speed so far, or what became of it."""
        if "outcome" in result:
            self._ended = trial.planned
            record, alone = result["outcome"]
            self._lane.reported(self, trial.planned, record, alone)
        elif "process_id" in result:
            self._started, self._process_id = time.monotonic(), result["process_id"]
        elif "workers_to_start" in result:
            self._lane.sweep.progress.note(f"starting {result['workers_to_start']} workers, which takes 10 s and more")
        elif "images_per_second" in result:
            self._lane.sweep.progress.rate(result["images_per_second"])

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """The process has ended: on purpose after a trial's row, or with the trial."""
        self.ended = True
        if trial.planned is self._ended:  # it had its row; the process was ended on purpose
            return
        self._ended = trial.planned
        elapsed = time.monotonic() - self._started if self._started else 0.0
        text = Path(trial.error_file).read_text() if trial.error_file else "the trial process ended without a word"
        self._lane.died(self, trial.planned, text, elapsed)
