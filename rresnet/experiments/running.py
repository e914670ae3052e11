"""One run of a plan: measure what is missing from it, and store the rows."""

import contextlib
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console

from rresnet import data, grid
from rresnet.cell import Cell, UsageError, stable_hash
from rresnet.config import How, Settings
from rresnet.experiments import planning
from rresnet.experiments.planning import Cells, Plan
from rresnet.progress import Progress
from rresnet.tables import environment, reading, runs, store
from rresnet.tables.measurement import Measurement, Record
from rresnet.terminal import say

if TYPE_CHECKING:
    import pandas as pd

    from rresnet.runner.machines import Machine
    from rresnet.runner.sweep import Sweep

Show = Callable[["pd.DataFrame", Console, str], None]  # a run's trials, where to print, the results folder or its URL
# Runs more trials of the cells that can run, depending on the first rows; last come ids of trials to be run again.
Extend = Callable[["Sweep", Sequence[Cell], Collection[str]], None]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What sets one experiment apart from another."""

    name: str  # also the default name of its runs
    cells: Cells = grid.cells  # what it measures, from the settings
    show: Show | None = None  # prints what it found, if not the table of the cells and the fastest
    trainable: Callable[..., None] | None = None  # what runs a trial, instead of training


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What the trials of a run are measured with."""

    machines: "tuple[Machine, ...]"  # the plan is made for the first
    images: data.ImageData
    console: Console
    stop_asked: Callable[[], bool]


def measured(
    experiment: Experiment, settings: Settings, setup: Setup, extend: Extend | None, *, reuse: bool = False
) -> "pd.DataFrame":
    """Run the plan, or what a continued run lacks of it, and what extends it; return the run's trials.

    With `reuse`, the newest run of this environment is continued even if it is complete.
    """
    results, console, first = settings.results_dir, setup.console, setup.machines[0].hardware
    planned = planning.plan(settings, experiment.cells, first, len(setup.machines))
    this = _opened(experiment.name, settings, setup, planned, reuse=reuse)
    from rresnet.runner import machines

    with store.Writer(results, this, lambda text: say(console, text)) as writer:
        attempts, done = _ended(settings, this)  # only now that no other command may add to them
        todo = [(trial, reason) for trial, reason in planned if trial.trial_id not in done]
        say(console, planning.opening(this, settings, planned, done, first))
        if waiting := machines.busy(setup.machines):
            say(console, waiting)
        of_all = {trial.cell for trial, _ in planned}
        shown = Progress(console, total=len(planned), done=len(planned) - len(todo), cells=of_all)
        with _quiet_ray(console), shown as progress:
            try:
                sweep = _sweep(settings, setup, writer, progress, attempts, experiment.trainable)
                for trial, reason in todo:
                    if reason:
                        measurement = Measurement(status="infeasible", error_type="Infeasible", error_message=reason)
                        sweep.record(trial, Record(measurement=measurement))
                sweep.execute([trial for trial, reason in todo if reason is None])
                if extend:
                    cells = list(dict.fromkeys(trial.cell for trial, reason in planned if reason is None))
                    extend(sweep, cells, attempts.keys() - done if settings.retry else ())
                writer.flush()
            except Exception:
                writer.check()  # a full disk, say, which Tune reports as a failure of its own
                raise
        from rresnet.analysis import frames  # imports pandas and scipy, again late
        from rresnet.quality import states

        changed = states.changed(frames.trials_of(results, this.run_id))
        writer.finish(datetime.now(UTC).isoformat(), changed, "machine_changed")  # before another command may have it
    return frames.trials_of(results, this.run_id)


def _sweep(
    settings: Settings,
    setup: Setup,
    writer: store.Writer,
    progress: Progress,
    attempts: Mapping[str, int],
    trainable: Callable[..., None] | None,
) -> "Sweep":
    import ray

    from rresnet.runner.sweep import Sweep

    return Sweep(
        machines=setup.machines,
        data=ray.put(setup.images),
        how=How(**{field.name: getattr(settings, field.name) for field in fields(How)}),
        writer=writer,
        progress=progress,
        stop_asked=setup.stop_asked,
        attempts=dict(attempts),
        trainable=trainable,
    )


def _opened(name: str, settings: Settings, setup: Setup, planned: Plan, *, reuse: bool) -> runs.Run:
    """The run that the plan is measured in: a new one, or an earlier one that is continued."""
    plan_id = stable_hash([trial.to_dict() for trial, _ in planned])
    started, run_name = datetime.now(UTC), settings.name or name
    new = runs.Run(
        run_id=f"{started:%Y%m%dT%H%M%S%f}Z-{run_name}-{plan_id[:6]}",
        experiment=name,
        name=run_name,
        plan_id=plan_id,
        planned=len(planned),
        started_at=started.isoformat(),
        request_id=settings.request_id,
        environment=environment.of_run(
            setup.machines[0].hardware,
            setup.images.fingerprint,
            models={trial.cell.model for trial, _ in planned},
            local=settings.address is None,
        ),
    )
    earlier = runs.of_request(settings.results_dir, run_name, name, new.request_id)
    again, mix = settings.retry is not None, settings.mix_environments
    this = runs.open_run(settings.results_dir, new, fresh=settings.fresh, again=again, reuse=reuse, mix=mix)
    if settings.retry == "all" and this.retried_at is None:  # else an interrupted command has begun to
        this = replace(this, retried_at=datetime.now(UTC).isoformat())
    if settings.retry and not earlier:
        say(setup.console, f"No run of the same flags is in {settings.results_dir} yet, so this is a new one")
    if this == new and earlier and not settings.fresh:
        say(setup.console, f"Run {earlier[-1].run_id} of the same flags is complete: this is a new one")
    return this


def continued(name: str, settings: Settings) -> tuple[runs.Run | None, set[str]]:
    """The earlier run that the command would go on with, if any, and the trials of it that are not run again."""
    earlier = runs.of_request(settings.results_dir, settings.name or name, name, settings.request_id)
    if settings.fresh or not earlier or not (settings.retry or earlier[-1].finished_at is None):
        return None, set()
    return earlier[-1], _ended(settings, earlier[-1])[1]


def _ended(settings: Settings, run: runs.Run) -> tuple[dict[str, int], set[str]]:
    """Attempts made at each trial of the run that has a row, and the trials that are not to be run again."""
    table = reading.read_tables(settings.results_dir, ["trials"], run_id=run.run_id)["trials"]
    rows = table.select(["trial_id", "status", "attempt", "command_started_at"]).to_pylist()
    attempts = {row["trial_id"]: row["attempt"] for row in rows}
    if run.finished_at and not settings.retry:  # a complete run that is used again
        return attempts, set(attempts)
    ok = [row for row in rows if row["status"] == "ok"]
    if settings.retry == "all":  # unless a command that began to, and was interrupted, has run it
        began = [(row, row["command_started_at"]) for row in ok]
        ok = [row for row, at in began if at and run.retried_at and at.isoformat() >= run.retried_at]
    done = {row["trial_id"] for row in ok}
    if settings.retry == "disturbed":
        from rresnet.analysis import load  # imports pandas, which would delay every other command

        done -= load.to_repeat(table.to_pandas())
    return attempts, done


@contextlib.contextmanager
def _quiet_ray(console: Console) -> Iterator[None]:
    """Keep what Ray prints in a file, and show its end if an unexpected error is raised."""
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        try:
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                yield
        except UsageError:
            raise
        except Exception:
            log.seek(0)
            say(console, f"The end of Ray's output: {log.read()[-4000:]}")
            raise
