"""A run from its settings to its answer: plan, measure what is missing, store, show."""

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console

from rresnet import data, environment, grid, hardware, place, planning, store
from rresnet.config import AUTO, Cell, How, Settings, UsageError, stable_hash
from rresnet.measurement import Measurement
from rresnet.planning import Cells, Planned
from rresnet.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

    from rresnet.cluster import Cluster
    from rresnet.machines import Wanted
    from rresnet.sweep import Sweep

Show = Callable[["pd.DataFrame", Console, str], None]  # a run's trials, where to print, the results folder or its URL
# Runs more trials, by what the first ones told; the last are ids of trials that are to be run once more.
Extend = Callable[["Sweep", store.Writer, Progress, Collection[str]], None]

EARLY_SECONDS = 0.5  # for data that can be read, or refused, before Ray is started


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What sets one experiment apart from another."""

    name: str  # also the default name of its runs
    cells: Cells = grid.cells  # what it measures, from the settings
    show: Show | None = None  # prints what it found, where that is not the table of the cells and the fastest
    trainable: Callable[..., None] | None = None  # what runs a trial, instead of training


@dataclass(frozen=True, kw_only=True)
class _Means:
    """What the trials of a run are measured with."""

    cluster: "Cluster"
    images: data.ImageData
    console: Console
    stop_asked: Callable[[], bool]


@dataclass(frozen=True, kw_only=True)
class _Done:
    """A run that is complete."""

    run: store.Run
    trials: "pd.DataFrame"
    failed: int  # of the trials that were run now


def run(
    experiment: Experiment, settings: Settings, console: Console, stop_asked: Callable[[], bool] = lambda: False
) -> bool:
    """Run an experiment; returns whether every planned trial is ok.

    Args:
        experiment: what is measured and shown.
        settings: its flags.
        console: where it tells.
        stop_asked: whether the person has asked to stop, where the exception that says so may have been swallowed.

    Raises:
        UsageError, DataError, StoreError: the request is wrong or can't be met.
        KeyboardInterrupt: the person has stopped it; what was measured is stored.
    """
    here, begin, tell = hardware.probe(), _beginning(settings), functools.partial(_tell, console)
    if settings.address is None:  # a wrong request is told at once, before anything starts
        planned = planning.plan(begin, experiment.cells, here)
        if settings.dry_run:
            planning.show(planned, begin, console)
            return True
    store.check_writable(settings.results_dir)
    with ThreadPoolExecutor(1) as pool:  # Ray starts while the data is read
        images = pool.submit(
            data.load, settings.dataset, image_size=settings.image_size, data_dir=settings.data_dir, seed=settings.seed
        )
        if images in wait([images], timeout=EARLY_SECONDS).done:  # what is wrong with it is told at once
            planning.check_batches(settings, images.result())
        from rresnet import cluster as ray_cluster

        with ray_cluster.connect(settings.address, here, _machines(settings), tell) as joined:
            cluster = _alike(joined, begin, experiment.cells, tell)
            planned = planning.plan(begin, experiment.cells, cluster.hardware, len(cluster.machines))
            if settings.dry_run:
                planning.show(planned, begin, console)
                return True
            means = _Means(cluster=cluster, images=images.result(), console=console, stop_asked=stop_asked)
            planning.check_batches(settings, means.images)
            return _measure(experiment, settings, means)


def _machines(settings: Settings) -> "Wanted":
    from rresnet.machines import Wanted

    return Wanted(
        gpu="gpu" in settings.device,
        accelerator_type=settings.accelerator_type,
        count=settings.machines,
        wait_seconds=settings.wait_seconds,
    )


def _alike(joined: "Cluster", settings: Settings, cells: planning.Cells, tell: Callable[[str], None]) -> "Cluster":
    """The cluster without the machines on which the settings mean other cells than on the first."""
    first, *others = joined.machines
    same = [one for one in others if planning.alike(settings, cells, first.hardware, one.hardware)]
    for one in others:
        if one not in same:
            tell(
                f"{one.hardware.hostname} does not measure: with its {one.hardware.cpu_cores} cores and "
                f"{one.hardware.gpu_count} GPUs the settings mean other cells there than on {first.hardware.hostname}"
            )
    return replace(joined, machines=(first, *same))


def _beginning(settings: Settings) -> Settings:
    """The settings of what is run first: where batch sizes are to be found, of the first probes."""
    if settings.batch_size != AUTO:
        return settings
    from rresnet import search

    return search.first(settings)


def _measure(experiment: Experiment, settings: Settings, means: _Means) -> bool:
    """Run what was asked for, and answer."""
    if settings.batch_size == AUTO:
        experiment, settings = _find_batch_sizes(experiment, settings, means)
    extend: Extend | None = None
    if settings.target_interval:
        from rresnet import growth

        began, feasible = time.monotonic(), _feasible_cells(experiment, settings, means)

        def extend(sweep: "Sweep", writer: store.Writer, progress: Progress, again: Collection[str]) -> None:
            growth.grow(sweep, settings, feasible, writer, progress, again=again, began=began)

    done = _run(experiment, settings, means, extend)
    from rresnet import answer  # pandas and scipy: seconds that the start need not wait for

    if experiment.show:
        experiment.show(done.trials, means.console, settings.results_dir)
    else:
        answer.findings(done.trials, means.console)
    answer.remarks(done.trials, means.console, advice=settings.advice)
    _tell(means.console, _completion(done.trials))
    means.console.print(
        f"Rows: {place.at(settings.results_dir).told('trials')} (run {done.run.run_id})",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )
    return not done.failed


def _find_batch_sizes(experiment: Experiment, settings: Settings, means: _Means) -> tuple[Experiment, Settings]:
    """Probe batch sizes in a run of their own; the experiment and settings of those that are worth measuring."""
    from rresnet import search

    begin = search.first(settings, again=not settings.fresh)
    feasible = _feasible_cells(experiment, begin, means)

    def probe(sweep: "Sweep", writer: store.Writer, progress: Progress, again: Collection[str]) -> None:
        search.probe(sweep, feasible, writer, progress, most=len(means.images.train.labels))

    name = f"{settings.name or experiment.name}-sizes"
    done = _run(replace(experiment, name=name), begin, means, probe)
    found = search.found(done.trials, most=len(means.images.train.labels))
    for line in found.told:
        _tell(means.console, line)
    return (
        replace(experiment, cells=lambda *of: [cell for cell in experiment.cells(*of) if found.fits(cell)]),
        replace(settings, batch_size=found.sizes),
    )


def _run(experiment: Experiment, settings: Settings, means: _Means, extend: Extend | None) -> _Done:
    """Run the plan, or what is missing of it in a run that is continued, and what extends it."""
    results, console, cluster = settings.results_dir, means.console, means.cluster
    planned = planning.plan(settings, experiment.cells, cluster.hardware, len(cluster.machines))
    this = store.open_run(
        results,
        _new_run(experiment.name, settings, planned, cluster.hardware),
        fresh=settings.fresh,
        again=settings.retry is not None,
        mix=settings.mix_environments,
    )
    attempts, done = _ended(results, this)
    if settings.retry == "all":
        done = set()
    todo = [(trial, reason) for trial, reason in planned if trial.trial_id not in done]
    measuring = [machine.hardware for machine in cluster.machines]
    _tell(console, planning.opening(this, settings, planned, todo, measuring))
    from rresnet import machines

    if waiting := machines.busy(cluster.machines):
        _tell(console, waiting)
    writer = store.Writer(results, this, lambda text: _tell(console, text))
    with _quiet_ray(console), writer, Progress(console, total=len(todo)) as progress:
        try:
            sweep = _sweep(this, settings, means, writer, progress, attempts, experiment.trainable)
            _execute(sweep, todo)
            if extend:
                extend(sweep, writer, progress, attempts.keys() - done if settings.retry else ())
        except Exception:
            writer.check()  # a full disk, say, which Tune tells as a failure of its own
            raise
    from rresnet import analysis, regimes  # pandas and scipy, again

    changed = regimes.changed(analysis.trials_of(results, this.run_id))
    writer.finish(_now(), changed, "machine_changed")
    return _Done(run=this, trials=analysis.trials_of(results, this.run_id), failed=sweep.failed)


def _tell(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)


def _sweep(
    this: store.Run,
    settings: Settings,
    means: _Means,
    writer: store.Writer,
    progress: Progress,
    attempts: Mapping[str, int],
    trainable: Callable[..., None] | None,
) -> "Sweep":
    import ray

    from rresnet.lane import run_trial
    from rresnet.sweep import Sweep

    return Sweep(
        run=this,
        cluster=means.cluster,
        data=ray.put(means.images),
        how=How(
            seconds=settings.seconds,
            timeout_seconds=settings.timeout_seconds,
            profile=settings.profile,
            save_model=settings.save_model,
        ),
        write=writer.write,
        keep=writer.keep,
        progress=progress,
        stop_asked=means.stop_asked,
        earlier=attempts,
        trainable=trainable or run_trial,
    )


def _completion(trials: "pd.DataFrame") -> str:
    ok = int((trials["status"] == "ok").sum())
    if ok == len(trials):
        return f"Run complete: all {ok} trials are ok."
    tell = f"Run complete: {ok} of {len(trials)} trials are ok."
    return f"{tell} The same command with --retry failed tries the others again."


def _feasible_cells(experiment: Experiment, settings: Settings, means: _Means) -> list[Cell]:
    machines = means.cluster.machines
    planned = planning.plan(settings, experiment.cells, machines[0].hardware, len(machines))
    return list({trial.cell.cell_id: trial.cell for trial, reason in planned if reason is None}.values())


def _execute(sweep: "Sweep", todo: Planned) -> None:
    for trial, reason in todo:
        if reason:
            sweep.finish(trial, Measurement(status="infeasible", error_type="Infeasible", error_message=reason))
    sweep.execute([trial for trial, reason in todo if reason is None])


def _new_run(name: str, settings: Settings, planned: Planned, machine: hardware.Hardware) -> store.Run:
    plan_id = stable_hash([trial.to_dict() for trial, _ in planned])
    started, run_name = datetime.now(UTC), settings.name or name
    return store.Run(
        run_id=f"{started:%Y%m%dT%H%M%S%f}Z-{run_name}-{plan_id[:6]}",
        experiment=name,
        name=run_name,
        plan_id=plan_id,
        planned=len(planned),
        started_at=started.isoformat(),
        request_id=settings.request_id,
        environment=environment.means(machine),
    )


def _ended(results: str, this: store.Run) -> tuple[dict[str, int], set[str]]:
    """Attempts made at each trial that has a row, and the trials that are ok."""
    table = store.read_tables(results, run_id=this.run_id)["trials"]
    rows = table.select(["trial_id", "status", "attempt"]).to_pylist()
    return {r["trial_id"]: r["attempt"] for r in rows}, {r["trial_id"] for r in rows if r["status"] == "ok"}


def _now() -> str:
    return datetime.now(UTC).isoformat()


@contextlib.contextmanager
def _quiet_ray(console: Console) -> Iterator[None]:
    """Keep what Ray prints in a file, and show its end when something unforeseen is raised."""
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        try:
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                yield
        except (store.StoreError, UsageError):
            raise
        except Exception:
            log.seek(0)
            console.print("Ray's last words:", log.read()[-4000:], markup=False, highlight=False)
            raise
