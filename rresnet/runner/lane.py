"""One machine's trials, one after another in its trial processes, through Ray Tune."""

import functools
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from rresnet import scratch
from rresnet.cell import Cell, Trial
from rresnet.config import How
from rresnet.runner.agenda import Agenda
from rresnet.runner.events import Events
from rresnet.runner.handout import AsGiven, Handout
from rresnet.runner.machines import Machine
from rresnet.tables.measurement import Measurement

if TYPE_CHECKING:
    from rresnet.data import ImageData
    from rresnet.runner.sweep import Sweep

# What the process of trials of several workers holds: a sliver of a resource that Ray puts on the head node, so that
# every processor is left to the workers.
ON_THE_HEAD = tune.PlacementGroupFactory([{"node:__internal_head__": 0.001}])

ALIVE_SECONDS = 1.0  # between looks at whether the machine is still there
DEATH_SECONDS = 60.0  # in which a machine answers, or Ray finds out that it is gone
KILLED_FOR_MEMORY = (
    "OutOfMemoryError: the kernel ended the trial process: the machine, or its part of it, ran out of memory"
)


def run_trial(config: dict[str, Any], how: How, data: list["ray.ObjectRef[ImageData]"]) -> None:
    """The Tune trainable. It is imported where it runs, so that the driver never waits for torch."""
    from rresnet.runner import trial

    trial.run(config, how, data)


class TrialProcessSpentError(RuntimeError):
    """Ends a trial process whose state a failed trial may have harmed; the next trial gets a new one.

    It stands here because the driver unpickles it: from `rresnet.runner.trial` it would bring torch along.
    """


class MachineLostError(RuntimeError):
    """The lane's machine is no longer part of the cluster."""


class Lane:
    """Measures on one machine, one trial at a time, as long as there are repeats to take.

    A trial is *taken* from the agenda, *handed out* to Tune, *begun* when Tune starts it in a process, and *ended* when
    it has its row or waits to be tried again. A lane may be lost with a trial between any two of these.
    """

    def __init__(self, sweep: "Sweep", machine: Machine, agenda: Agenda) -> None:
        self.sweep, self.machine, self.agenda = sweep, machine, agenda
        self._hot = deque[Trial]()  # of the repeats taken: those of one worker, which stay hot,
        self._of_groups = deque[Trial]()  # and those of several, whose worker groups take the machine's processors
        self._unconfirmed = deque[Trial]()  # ran out of memory beside other hot cells
        self._too_large: dict[str, str] = {}  # cells that did so alone -> the message
        self._looked = 0.0
        self.lost = False  # the machine

    def run(self) -> None:
        """Take and measure repeats until there are none left, or the machine is lost."""
        while not self.lost and (self._hot or self._of_groups or self._take(None)):
            self._measure_process((self._hot or self._of_groups)[0].process)
        left = [*self._unconfirmed, *self._hot, *self._of_groups]
        if left:
            name = self.machine.hardware.hostname
            self.sweep.progress.note(f"{name} is lost: {len(left)} of its trials go to another machine")
        self.agenda.put_back(sorted(left, key=lambda trial: (trial.process, trial.repeat)))

    def _take(self, process: int | None) -> bool:
        taken = self.agenda.take(process)
        self._hot += [trial for trial in taken if trial.cell.num_workers == 1]
        self._of_groups += [trial for trial in taken if trial.cell.num_workers > 1]
        return bool(taken)

    def _measure_process(self, process: int) -> None:
        """Measure the repeats that the plan has in one process, as far as other machines leave them."""

        def next_hot() -> Trial | None:
            while not self._hot and self._take(process):
                pass
            return self._next_of(self._hot)

        self._fit(next_hot, self.machine.whole)
        while self._unconfirmed and not self.lost:  # what is left of them goes back to the agenda
            alone = deque([self._unconfirmed.popleft()])
            self._fit(functools.partial(self._next_of, alone), self.machine.whole, attempt=2)
        self._of_groups = deque(_by_group(self._of_groups))
        self._fit(functools.partial(self._next_of, self._of_groups), ON_THE_HEAD)

    def _next_of(self, trials: deque[Trial]) -> Trial | None:
        while trials:
            if not self._known_too_large(trials[0]):
                return trials.popleft()
            trials.popleft()
        return None

    def _fit(
        self, next_trial: Callable[[], Trial | None], resources: tune.PlacementGroupFactory, attempt: int = 1
    ) -> None:
        """Run trials, as long as there are, in a fresh process; those that one ends with, in the next."""
        while not self.lost and (first := next_trial()):
            waiting, callback = deque([first]), Events(self, attempt)

            def left(waiting: deque[Trial] = waiting) -> Trial | None:
                return waiting.popleft() if waiting else None if self.lost else next_trial()

            planned = Handout(left, self._config)
            try:
                self._tune(planned, resources, callback)
            except RuntimeError as error:
                self._survive(error, planned.given or first, callback)

    def _survive(self, error: RuntimeError, given: Trial | None, callback: Events) -> None:
        """Account for the trial that Tune broke off with where a machine or memory failed; raise any other error.

        A trial that was handed out but never begun goes back to those that wait.
        """
        if isinstance(error, MachineLostError) or isinstance(error.__cause__, MachineLostError):
            if running := callback.running:
                self._lose(running)
        elif isinstance(error.__cause__, ray.exceptions.OutOfMemoryError) and callback.begun:
            callback.evicted(str(error.__cause__))  # Tune gives up when Ray's memory monitor ends a process
        else:
            raise error
        if given and given is not callback.begun:
            (self._hot if given.cell.num_workers == 1 else self._of_groups).appendleft(given)

    def _tune(self, planned: Handout, resources: tune.PlacementGroupFactory, callback: Events) -> None:
        self.machine.release(alone=len(self.sweep.cluster.machines) == 1)
        with scratch.folder() as storage, planned:
            trainable = tune.with_resources(
                tune.with_parameters(self.sweep.trainable, how=self.sweep.how, data=[self.sweep.data]), resources
            )
            # Tune looks a trial's resources up by this name, in a registry that all lanes share: without a name of its
            # own, a lane's trials would go to the machine of the lane that started a process last.
            trainable.__name__ += f"-{self.machine.node_id}"
            tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=planned,
                    scheduler=AsGiven(),
                    num_samples=-1,  # as many as the plan has
                    reuse_actors=True,
                    trial_dirname_creator=lambda trial: str(trial.trial_id),
                ),
                run_config=tune.RunConfig(name="tune", storage_path=str(storage), verbose=0, callbacks=[callback]),
            ).fit()

    def _config(self, trial: Trial) -> dict[str, Any]:
        after = next((t for t in self._of_groups if t.cell.cell_id not in self._too_large), None)
        stays = after is not None and group_of(after.cell) == group_of(trial.cell)
        return {"trial": trial.to_json(), "nodes": self._placement(trial), "group_stays": stays}

    def _placement(self, trial: Trial) -> list[str]:
        """The machine of each worker: this one first, then the others in their order, evenly."""
        machines = [self.machine, *(m for m in self.sweep.cluster.machines if m is not self.machine)]
        each = -(-trial.cell.num_workers // trial.cell.num_nodes)
        return [machines[worker // each].node_id for worker in range(trial.cell.num_workers)]

    def check(self) -> None:
        """Raise KeyboardInterrupt where the run is to end, MachineLostError where the machine is gone."""
        self.sweep.check_stop()
        if time.monotonic() - self._looked > ALIVE_SECONDS:
            self._looked = time.monotonic()
            if not self.machine.alive():
                self.lost = True
                raise MachineLostError

    def _known_too_large(self, trial: Trial) -> bool:
        message = self._too_large.get(trial.cell.cell_id)
        if message:
            reason = f"not run: the cell ran out of memory alone in a fresh process before ({message})"
            found = Measurement(status="out_of_memory", error_type="OutOfMemoryError", error_message=reason)
            self.sweep.finish(trial, found)
        return message is not None

    def reported(self, trial: Trial, attempt: int, outcome: Mapping[str, Any]) -> None:
        """A trial has sent what became of it, as `trial.run` does."""
        record = outcome["record"]
        for name, content in outcome.get("files", {}).items():
            self.sweep.keep(f"{trial.cell.label().replace(' ', '-')}-{trial.trial_id}{name}", content)
        measurement = record["measurement"]
        if measurement["status"] == "out_of_memory" and trial.cell.num_workers == 1:
            if not outcome["alone"]:
                self._unconfirmed.append(trial)
                return
            self._too_large[trial.cell.cell_id] = measurement["error_message"]
        known = {**outcome["environment"], **outcome["when"]}
        self.sweep.record(trial, measurement, self._made(trial, attempt), known, record)

    def _made(self, trial: Trial, attempt: int) -> int:
        """The attempts made at a trial: those before that went with their machines count, too."""
        return attempt + self.agenda.losses(trial)

    def evicted(self, trial: Trial, attempt: int, account: str, process_id: int | None) -> None:
        """Ray's memory monitor, or the kernel's own killer, has ended the process of a trial."""
        if attempt == 1 and trial.cell.num_workers == 1:  # other hot cells held memory, too
            self._unconfirmed.append(trial)
            return
        found = replace(death(account, 0.0, math.inf), output_tail=self.machine.output_tail(process_id))
        self._too_large[trial.cell.cell_id] = str(found.error_message)
        self.sweep.finish(trial, found, attempt=self._made(trial, attempt))

    def died(
        self, trial: Trial, attempt: int, account: str, elapsed: float, process_id: int | None, kills: int
    ) -> None:
        """The process of a trial has ended without its record; `kills` for want of memory were there when it began."""
        found = death(account, elapsed, self.sweep.how.process_limit_seconds(trial.cell))
        if found.status == "killed" and self.machine.is_lost(within=DEATH_SECONDS):
            self.lost = True
            self._lose(trial)
            return
        if found.status == "killed" and self.machine.kills_for_memory() > kills:
            self.evicted(trial, attempt, KILLED_FOR_MEMORY, process_id)
            return
        found = replace(found, output_tail=self.machine.output_tail(process_id))
        self.sweep.finish(trial, found, attempt=self._made(trial, attempt))

    def _lose(self, trial: Trial) -> None:
        """The machine died with the trial: another one gets it, once."""
        if self.agenda.lose(trial):
            self._hot.appendleft(trial)  # goes back to the agenda with the rest
            return
        message = f"the machine was lost while it ran, twice; now {self.machine.hardware.hostname}"
        found = Measurement(status="killed", error_type="NodeDiedError", error_message=message)
        self.sweep.finish(trial, found, attempt=2)


def group_of(cell: Cell) -> tuple[str, int, int, int]:
    """What cells must have alike for one worker group to train them, on one lane."""
    return cell.device, cell.num_workers, cell.num_nodes, cell.cpu_threads


def _by_group(trials: Collection[Trial]) -> list[Trial]:
    """The trials, those of one worker group side by side, in the order in which each group is first needed."""
    groups = list(dict.fromkeys(group_of(trial.cell) for trial in trials))
    return sorted(trials, key=lambda trial: groups.index(group_of(trial.cell)))


def death(text: str, elapsed_seconds: float, timeout_seconds: float) -> Measurement:
    """The measurement of a trial whose process ended without a report; `text` is Ray's account of it."""
    if "OutOfMemoryError" in text or "low on memory" in text:
        return Measurement(status="out_of_memory", error_type="OutOfMemoryError", error_message=text[:2000])
    if elapsed_seconds >= timeout_seconds:
        message = f"still running after {timeout_seconds:g} s (--timeout-seconds)"
        return Measurement(status="timeout", error_type="TimeoutError", error_message=message)
    signs = ("has died", "died unexpectedly", "is unavailable")  # the last of a process whose machine no longer answers
    if any(sign in text for sign in signs):
        detail = text[text.index("The actor is dead") :] if "The actor is dead" in text else text
        return Measurement(status="killed", error_type="ActorDiedError", error_message=detail[:2000])
    return Measurement(status="error", error_type="RayTaskError", error_message=text[-2000:])
