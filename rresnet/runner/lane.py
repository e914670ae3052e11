"""One machine's trials, one after another in its trial processes, through Ray Tune."""

import logging
import time
from collections import deque
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from rresnet import scratch
from rresnet.cell import Cell, Trial
from rresnet.config import How
from rresnet.runner import layout, machines
from rresnet.runner.agenda import Agenda
from rresnet.runner.events import TrialProcess
from rresnet.runner.handout import AsGiven, Handout
from rresnet.runner.machines import Machine
from rresnet.tables.measurement import Measurement, Record

if TYPE_CHECKING:
    from rresnet.data import ImageData
    from rresnet.runner.sweep import Sweep

logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)  # a failed trial is a row, and is told as one
ALIVE_SECONDS = 1.0  # between checks that the machine is still there
DEATH_SECONDS = 60.0  # within which a machine answers, or Ray finds out that it is gone
KILLED_FOR_MEMORY = Measurement(
    status="out_of_memory",
    error_type="OutOfMemoryError",
    error_message="the kernel ended a process of the trial because the machine, or its part of it, ran out of memory",
)


def run_trial(config: dict[str, Any], how: How, data: list["ray.ObjectRef[ImageData]"]) -> None:
    """The Tune trainable. It is imported where it runs, so that the driver never waits for torch."""
    from rresnet.runner import trial

    trial.run(config, how, data)


class MachineLostError(RuntimeError):
    """The lane's machine is no longer part of the cluster."""


class Lane:
    """Measures on one machine, one trial at a time, as long as there are repeats to take.

    A trial is *taken* from the agenda, *handed out* to Tune, *begun* when Tune starts it in a process, and *ended* when
    it has its row or waits to be tried again. The machine may be lost while a trial is between any two of these.
    """

    def __init__(self, sweep: "Sweep", machine: Machine, agenda: Agenda) -> None:
        self.sweep, self.machine, self.agenda = sweep, machine, agenda
        self._waiting = deque[Trial]()  # trials of the repeats taken
        self._unconfirmed = deque[Trial]()  # trials that ran out of memory beside other hot cells
        self._too_large: dict[str, str] = {}  # cells that did so alone -> the message
        self._looked = 0.0
        self.lost = False  # whether the machine is

    def run(self) -> None:
        """Take and measure repeats until there are none left, or the machine is lost."""
        while not self.lost and (self._waiting or self._take(None)):
            self._measure_process(self._waiting[0].process)
        left = [*self._unconfirmed, *self._waiting]
        if left:
            name = self.machine.hardware.hostname
            self.sweep.progress.note(f"{name} is lost: {len(left)} of its trials go to another machine")
        self.agenda.put_back(sorted(left, key=lambda trial: (trial.process, trial.repeat)))

    def _take(self, process: int | None) -> bool:
        taken = self.agenda.take(process)
        self._waiting += taken
        return bool(taken)

    def _measure_process(self, process: int) -> None:
        """Measure the repeats that the plan has in one process, except those that other machines take."""
        self._measure(self._waiting, process)
        while self._unconfirmed and not self.lost:  # once lost, the rest goes back to the agenda
            self._measure(deque([self._unconfirmed.popleft()]), attempt=2)

    def _measure(self, trials: deque[Trial], process: int | None = None, attempt: int = 1) -> None:
        """Run trials, and what the plan has in `process`, in a fresh process; if it ends early, the rest in another."""
        while not self.lost and self._has_next(trials, process):
            self._measure_in(TrialProcess(self, attempt), trials, process)
        if trials is not self._waiting:
            self._waiting.extendleft(trials)  # the machine is lost

    def _measure_in(self, fresh: TrialProcess, trials: deque[Trial], process: int | None) -> None:
        """Run trials in a fresh process as long as it goes on."""
        nodes = self._nodes()
        groups = layout.layouts(self._can_come(trials, process), nodes)

        def next_trial() -> Trial | None:
            """Take the next trial; None also if the process has ended or a machine of its workers is gone.

            The next process has other workers, and room.
            """
            over = self.lost or fresh.ended or (groups and self._nodes() != nodes)
            return trials.popleft() if not over and self._has_next(trials, process) else None

        def config(trial: Trial) -> dict[str, Any]:
            """What the process is told: where the trial's workers are, the groups, and when to let these go."""
            is_last = bool(groups) and not self._has_next(trials, process)
            return {"trial": trial, "nodes": layout.placement(trial.cell, nodes), "groups": groups, "is_last": is_last}

        handout = Handout(next_trial, config)
        try:
            self._tune(handout, fresh, groups.values())
        except RuntimeError as error:
            self._survive(error, fresh)
            if handout.given and handout.given is not fresh.begun:  # handed out, but never begun
                trials.appendleft(handout.given)

    def _has_next(self, trials: deque[Trial], process: int | None) -> bool:
        """Whether there is a trial to run; those before it that are known not to run get their rows."""
        while trials or (process is not None and self._take(process)):
            measurement = self._known_not_to_run(trials[0].cell, again=trials is not self._waiting)
            if measurement is None:
                return True
            self.sweep.record(trials.popleft(), Record(measurement=measurement))
        return False

    def _can_come(self, trials: Collection[Trial], process: int | None) -> list[Cell]:
        """The cells that the process may get to train."""
        coming = [] if process is None else self.agenda.cells_of(process)
        cells = dict.fromkeys([*(trial.cell for trial in trials), *coming])
        return [cell for cell in cells if self._known_not_to_run(cell) is None]

    def _survive(self, error: RuntimeError, process: TrialProcess) -> None:
        """Account for the trial at which Tune broke off, if a machine or memory failed; raise any other error."""
        running = process.running
        if isinstance(error, MachineLostError) or isinstance(error.__cause__, MachineLostError):
            if running:
                self._lose(running)
        elif isinstance(error.__cause__, ray.exceptions.OutOfMemoryError) and process.begun:
            if running:  # Tune gives up when Ray's memory monitor ends a process
                self.ended(process, running, process.death(running, str(error.__cause__)), alone=process.attempt > 1)
        else:
            raise error

    def _tune(self, handout: Handout, process: TrialProcess, groups: Collection[layout.Layout]) -> None:
        self.machine.release(alone=self.agenda.wide or len(self.sweep.machines) == 1)
        if groups:
            there = {self.machine.node_id, *(node for those in groups for node in those.nodes)}
            those = [machine for machine in self.sweep.machines if machine.node_id in there]
            machines.wait_until_free(those, self.check, self.sweep.progress.note)
        with scratch.folder() as storage, handout:
            trainable = tune.with_resources(
                tune.with_parameters(self.sweep.trainable or run_trial, how=self.sweep.how, data=[self.sweep.data]),
                self.machine.left_by(groups),
            )
            # Tune looks a trial's resources up by this name, in a registry that all lanes share: without a name of its
            # own, a lane's trials would go to the machine of the lane that started a process last.
            trainable.__name__ += f"-{self.machine.node_id}"
            tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=handout,
                    scheduler=AsGiven(),
                    num_samples=-1,  # as many as the plan has
                    reuse_actors=True,
                    trial_dirname_creator=lambda trial: str(trial.trial_id),
                ),
                run_config=tune.RunConfig(name="tune", storage_path=str(storage), verbose=0, callbacks=[process]),
            ).fit()

    def _nodes(self) -> list[str]:
        """This machine's node, then those of the others that are still there, in their order."""
        others = self.sweep.machines if self.agenda.wide else ()
        return [self.machine.node_id, *(m.node_id for m in others if m is not self.machine and m.alive())]

    def check(self) -> None:
        """Raise KeyboardInterrupt where the run is to end, MachineLostError where the machine is gone."""
        self.sweep.check_stop()
        if time.monotonic() - self._looked > ALIVE_SECONDS:
            self._looked = time.monotonic()
            if not self.machine.alive():
                self.lost = True
                raise MachineLostError

    def _known_not_to_run(self, cell: Cell, *, again: bool = False) -> Measurement | None:
        """What to record for a cell that this run has found unable to run, or to run `again`; None for any other."""
        if message := self._too_large.get(cell.cell_id):
            tried = "it ran out of memory beside other hot cells, and was not run again" if again else "not run"
            reason = f"{tried}: the cell has already run out of memory alone in a fresh process ({message})"
            return Measurement(status="out_of_memory", error_type="OutOfMemoryError", error_message=reason)
        if cell.num_nodes > 1 and cell.num_nodes > (left := len(self._nodes())):
            reason = f"not run: it needs {cell.num_nodes} machines, and the cluster has {left} left"
            return Measurement(status="killed", error_type="NodeDiedError", error_message=reason)
        return None

    def ended(self, process: TrialProcess, trial: Trial, found: Record, *, alone: bool) -> None:
        """Record what became of a trial, or note that it is to be tried again: elsewhere, or alone.

        Args:
            process: the process in which it ran; it may have ended with the trial.
            trial: the trial.
            found: what is known of it.
            alone: whether it ran with nothing hot beside it.
        """
        for name, content in found.files.items():
            self.sweep.writer.keep(f"{trial.cell.label().replace(' ', '-')}-{trial.trial_id}{name}", content)
        if found.measurement.status == "killed":
            if process.ended and self.machine.is_lost(within=DEATH_SECONDS):
                self.lost = True
                self._lose(trial)
                return
            if process.killed_for_memory:
                alone = process.attempt > 1  # the machine may have killed another process than the trial's
                starved = replace(KILLED_FOR_MEMORY, output_tail=found.measurement.output_tail)
                found = replace(found, measurement=starved)
        if found.measurement.status == "out_of_memory":
            if not alone:
                self._unconfirmed.append(trial)
                return
            self._too_large[trial.cell.cell_id] = str(found.measurement.error_message)
        # An earlier attempt that was lost with its machine counts, too.
        self.sweep.record(trial, found, attempt=process.attempt + self.agenda.was_lost(trial))

    def _lose(self, trial: Trial) -> None:
        """Give a trial whose machine died to another machine, once; then record it as killed."""
        if self.agenda.lose(trial):
            self._waiting.appendleft(trial)  # goes back to the agenda with the rest
            return
        message = f"the machine was lost while it ran, twice; the second time it was {self.machine.hardware.hostname}"
        measurement = Measurement(status="killed", error_type="NodeDiedError", error_message=message)
        self.sweep.record(trial, Record(measurement=measurement), attempt=2)
