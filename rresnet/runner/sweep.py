"""The driver's side of a run: lets the machines measure the planned trials, and turns whatever comes back into rows."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rresnet.cell import Trial
from rresnet.config import How
from rresnet.progress import Progress
from rresnet.runner.agenda import Agenda
from rresnet.runner.cluster import ClusterLostError
from rresnet.runner.lane import Lane
from rresnet.runner.machines import Machine
from rresnet.tables.measurement import DETAILS, SCHEMA_VERSION, TRIAL_KEY, Derived, Identity, Record
from rresnet.tables.runs import Run
from rresnet.tables.store import Rows, Writer

if TYPE_CHECKING:
    import ray

    from rresnet.data import ImageData

SIGNAL_SECONDS = 0.5  # how long Ctrl-C may wait while several machines measure


def rows_of(
    run: Run, trial: Trial, record: Record, *, attempt: int, command_started_at: datetime | None = None
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
    derived = Derived(global_batch_size=trial.cell.global_batch_size)
    when = replace(record.when, command_started_at=command_started_at)
    parts = (identity, trial.cell, derived, record.measurement, record.environment, when)
    row = {name: _text(value) for part in parts for name, value in asdict(part).items()}
    key = {name: row[name] for name in TRIAL_KEY}
    return {"trials": [row], **{name: [key | asdict(one) for one in getattr(record, name)] for name in DETAILS}}


def _text(value: Any) -> Any:
    """What a program printed or raised, as text that Parquet can hold: half a surrogate pair becomes "?"."""
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


@dataclass(kw_only=True)
class Sweep:
    """One run of planned trials, on one machine or several side by side."""

    machines: tuple[Machine, ...]
    data: "ray.ObjectRef[ImageData]"
    how: How
    writer: Writer  # of the run
    progress: Progress
    trainable: Callable[..., None] | None = None  # what runs a trial, instead of training
    stop_asked: Callable[[], bool] = lambda: False  # asked at each of Tune's events
    attempts: dict[str, int] = field(default_factory=dict)  # trial id -> how many have been made, before and here
    lane: type[Lane] = Lane
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    _stopped: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def execute(self, trials: Sequence[Trial]) -> None:
        """Run every trial; each ends as one row.

        Each machine takes one repeat after another. If any cell needs several machines, everything is measured from the
        first one (if it is lost, from the next), so that the cells of a pair are still measured on one machine and at
        one time.

        Raises ClusterLostError if no machine is left to measure the remaining trials.
        """
        agenda, machines = Agenda(trials), self.machines
        lanes = list[Lane]()
        while agenda.left:  # again where a machine was lost after the others had found nothing left to take
            if not lanes:  # at first, and when the one from which everything was measured is lost
                those, machines = (machines[:1], machines[1:]) if agenda.wide else (machines, ())
                lanes = [self.lane(self, machine, agenda) for machine in those]
            if not lanes:
                raise ClusterLostError(
                    f"no machine of the cluster is left, and {agenda.left} trials are not measured: what was measured "
                    "is kept; run the same command again when the cluster is back"
                )
            if len(lanes) == 1:
                lanes[0].run()
            else:
                self._side_by_side(lanes)
            lanes = [lane for lane in lanes if not lane.lost]

    def _side_by_side(self, lanes: Sequence[Lane]) -> None:
        with ThreadPoolExecutor(len(lanes), thread_name_prefix="rresnet-lane") as pool:
            running = {pool.submit(lane.run) for lane in lanes}
            try:
                while running:
                    ended, running = wait(running, timeout=SIGNAL_SECONDS, return_when=FIRST_EXCEPTION)
                    for one in ended:
                        one.result()
            except BaseException:
                self._stopped = True  # what one lane raises, or Ctrl-C here, ends the others
                raise

    def check_stop(self) -> None:
        """Raise KeyboardInterrupt if the user has asked for the end, or another lane has failed."""
        if self._stopped or self.stop_asked():
            raise KeyboardInterrupt

    def record(self, trial: Trial, record: Record, *, attempt: int = 1) -> None:
        """Write what became of a trial, and show it as finished."""
        attempt += self.attempts.get(trial.trial_id, 0)
        rows = rows_of(self.writer.run, trial, record, attempt=attempt, command_started_at=self.started_at)
        with self._lock:
            self.attempts[trial.trial_id] = attempt
            self.writer.write(trial.trial_id, rows)
            self.progress.finished(trial, record.measurement)
