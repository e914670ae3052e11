"""The driver's side of a run: hands the planned trials to Ray Tune and turns whatever comes back into rows."""

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune

from rresnet import scratch
from rresnet.cluster import WORKER_GROUP_RESOURCES, Cluster
from rresnet.config import SCHEMA_VERSION, How, Trial
from rresnet.data import ImageData
from rresnet.measurement import Environment, Identity, Measurement, Planned, When
from rresnet.progress import Progress
from rresnet.store import Rows, Run

_NOTHING_KNOWN = {**asdict(Environment()), **asdict(When())}


def rows_of(
    run: Run,
    trial: Trial,
    measurement: Mapping[str, Any],
    *,
    attempt: int,
    known: Mapping[str, Any],
    record: Mapping[str, Any],
) -> Rows:
    """The rows of one trial in all tables. Pure."""
    identity = Identity(
        run_id=run.run_id,
        experiment=run.experiment,
        trial_id=trial.trial_id,
        cell_id=trial.cell.cell_id,
        repeat=trial.repeat,
        process=trial.process,
        attempt=attempt,
        schema_version=SCHEMA_VERSION,
    )
    planned = Planned(global_batch_size=trial.cell.global_batch_size)
    key = {"run_id": run.run_id, "trial_id": trial.trial_id}
    return {
        "trials": [
            {**asdict(identity), **asdict(trial.cell), **asdict(planned), **measurement, **_NOTHING_KNOWN, **known}
        ],
        "windows": [{**key, **window} for window in record.get("windows", ())],
        "epochs": [{**key, **epoch} for epoch in record.get("epochs", ())],
        "losses": [{**key, **loss} for loss in record.get("losses", ())],
    }


def run_trial(config: dict[str, Any], how: How, data: list["ray.ObjectRef[ImageData]"]) -> None:
    """The Tune trainable. It is imported where it runs, so that the driver never waits for torch."""
    from rresnet import trial

    trial.run(config, how, data)


class TrialProcessSpentError(RuntimeError):
    """Ends a trial process whose state a failed trial may have harmed; the next trial gets a new one.

    It stands here because the driver unpickles it: from `rresnet.trial` it would bring torch along.
    """


@dataclass(kw_only=True)
class Sweep:
    """One run of planned trials over Ray Tune."""

    run: Run
    cluster: Cluster
    data: "ray.ObjectRef[ImageData]"
    how: How
    write: Callable[[str, Rows], None]
    keep: Callable[[str, bytes], None]  # a file that a trial sent, by its name
    progress: Progress
    trainable: Callable[..., None] = run_trial
    stop_asked: Callable[[], bool] = lambda: False  # asked at each of Tune's events
    earlier: Mapping[str, int] = field(default_factory=dict)  # trial id -> attempts made before
    failed: int = 0
    _unconfirmed: list[Trial] = field(default_factory=list)  # ran out of memory beside other hot cells
    _too_large: dict[str, str] = field(default_factory=dict)  # cells that did so alone -> the message

    def execute(self, trials: Sequence[Trial]) -> None:
        """Run every trial; each ends as one row. Each of the plan's processes is one Tuner, hence a fresh process."""
        for _, group in itertools.groupby(trials, key=lambda t: t.process):
            of_process = list(group)
            hot = [t for t in of_process if t.cell.num_workers == 1]
            workers = [t for t in of_process if t.cell.num_workers > 1]
            self._fit(hot, self.cluster.trial_resources)
            self._confirm_out_of_memory()
            self._fit(workers, WORKER_GROUP_RESOURCES)

    def finish(self, trial: Trial, measurement: Measurement, *, attempt: int = 1) -> None:
        """Record a trial that never ran."""
        self._write(trial, asdict(measurement), attempt, {}, {})

    def _confirm_out_of_memory(self) -> None:
        """Out of memory beside other hot cells proves nothing: such a trial is tried alone in a fresh process."""
        while self._unconfirmed:
            trial = self._unconfirmed.pop(0)
            self._fit([trial], self.cluster.trial_resources, attempt=2)

    def _fit(self, trials: Sequence[Trial], resources: Mapping[str, float], attempt: int = 1) -> None:
        left = [t for t in trials if not self._known_too_large(t)]
        while left:
            callback = _Callback(self, attempt)
            try:
                self._tune(left, resources, callback)
                return
            except RuntimeError as error:  # Tune gives up when Ray's memory monitor ends a trial process
                if not callback.begun or not isinstance(error.__cause__, ray.exceptions.OutOfMemoryError):
                    raise
                left = left[callback.evicted(str(error.__cause__)) :]

    def _tune(self, trials: Sequence[Trial], resources: Mapping[str, float], callback: "_Callback") -> None:
        with scratch.folder() as storage:
            trainable = tune.with_parameters(self.trainable, how=self.how, data=[self.data])
            tune.Tuner(
                tune.with_resources(trainable, dict(resources)),
                param_space={"trial": tune.grid_search([trial.to_json() for trial in trials])},
                tune_config=tune.TuneConfig(
                    reuse_actors=True, max_concurrent_trials=1, trial_dirname_creator=lambda trial: str(trial.trial_id)
                ),
                run_config=tune.RunConfig(name="tune", storage_path=str(storage), verbose=0, callbacks=[callback]),
            ).fit()

    def _known_too_large(self, trial: Trial) -> bool:
        message = self._too_large.get(trial.cell.cell_id)
        if message:
            reason = f"not run: the cell ran out of memory alone in a fresh process before ({message})"
            self.finish(trial, Measurement(status="out_of_memory", error_type="OutOfMemoryError", error_message=reason))
        return message is not None

    def _reported(self, trial: Trial, attempt: int, result: Mapping[str, Any]) -> None:
        record = result["record"]
        for name, content in result.get("files", {}).items():
            self.keep(f"{trial.cell.label().replace(' ', '-')}-{trial.trial_id}{name}", content)
        measurement = record["measurement"]
        if measurement["status"] == "out_of_memory" and trial.cell.num_workers == 1:
            if not result["alone"]:
                self._unconfirmed.append(trial)
                return
            self._too_large[trial.cell.cell_id] = measurement["error_message"]
        self._write(trial, measurement, attempt, {**result["environment"], **result["when"]}, record)

    def _evicted(self, trial: Trial, attempt: int, account: str, process_id: int | None) -> None:
        if attempt == 1 and trial.cell.num_workers == 1:  # other hot cells held memory, too
            self._unconfirmed.append(trial)
            return
        found = replace(death(account, 0.0, math.inf), output_tail=self.cluster.output_tail(process_id))
        self._too_large[trial.cell.cell_id] = str(found.error_message)
        self._write(trial, asdict(found), attempt, {}, {})

    def _write(
        self,
        trial: Trial,
        measurement: Mapping[str, Any],
        attempt: int,
        known: Mapping[str, Any],
        record: Mapping[str, Any],
    ) -> None:
        self.failed += measurement["status"] != "ok"
        attempt += self.earlier.get(trial.trial_id, 0)
        self.write(trial.trial_id, rows_of(self.run, trial, measurement, attempt=attempt, known=known, record=record))
        self.progress.finished(trial, measurement)


class _Callback(tune.Callback):
    """Tune's events, as calls of the sweep."""

    def __init__(self, sweep: Sweep, attempt: int) -> None:
        self._sweep, self._attempt = sweep, attempt
        self._started: dict[str, float] = {}
        self._process_id: int | None = None  # of the trial process, once it has said so
        self._reported: set[str] = set()
        self.begun: list[Any] = []  # Tune's trials, in their order

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks beside the experiment, for a restore that we do from our own rows."""
        return {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._stop_if_asked()
        if self._process_id:  # a new process tells when it is ready
            self._started[trial.trial_id] = time.monotonic()
        self.begun.append(trial)
        self._sweep.progress.running(_planned(trial))

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        self._stop_if_asked()
        if "record" in result:
            self._reported.add(trial.trial_id)
            self._sweep._reported(_planned(trial), self._attempt, result)
        elif "process_id" in result:
            self._started[trial.trial_id] = time.monotonic()
            self._process_id = result["process_id"]
        elif "images_per_second" in result:
            self._sweep.progress.rate(result["images_per_second"])

    def _stop_if_asked(self) -> None:
        if self._sweep.stop_asked():
            raise KeyboardInterrupt

    def evicted(self, account: str) -> int:
        """Record the trial in whose time Ray's memory monitor ended the process; returns how many have begun."""
        trial = self.begun[-1]
        if trial.trial_id not in self._reported:
            self._sweep._evicted(_planned(trial), self._attempt, account, self._process_id)
        return len(self.begun)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        process_id, self._process_id = self._process_id, None
        if trial.trial_id in self._reported:  # it had its row; the process was ended on purpose
            return
        elapsed = time.monotonic() - self._started.get(trial.trial_id, time.monotonic())
        text = Path(trial.error_file).read_text() if trial.error_file else "the trial process ended without a word"
        found = death(text, elapsed, self._sweep.how.limit_seconds(_planned(trial).cell))
        tail = self._sweep.cluster.output_tail(process_id)
        self._sweep._write(_planned(trial), asdict(replace(found, output_tail=tail)), self._attempt, {}, {})


def _planned(trial: Any) -> Trial:
    return Trial.from_json(trial.config["trial"])


def death(text: str, elapsed_seconds: float, timeout_seconds: float) -> Measurement:
    """The measurement of a trial whose process ended without a report; `text` is Ray's account of it."""
    if elapsed_seconds >= timeout_seconds:
        message = f"still running after {timeout_seconds:g} s (--timeout-seconds)"
        return Measurement(status="timeout", error_type="TimeoutError", error_message=message)
    if "OutOfMemoryError" in text or "low on memory" in text:
        return Measurement(status="out_of_memory", error_type="OutOfMemoryError", error_message=text[:2000])
    if "has died" in text:
        detail = text[text.index("The actor is dead") :] if "The actor is dead" in text else text
        return Measurement(status="killed", error_type="ActorDiedError", error_message=detail[:2000])
    return Measurement(status="error", error_type="RayTaskError", error_message=text[-2000:])
