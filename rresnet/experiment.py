"""A run from its settings to its answer: plan, measure what is missing, store, show."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from rresnet import data, environment, grid, hardware, store
from rresnet.config import Cell, Device, How, Settings, Trial, UsageError, stable_hash
from rresnet.measurement import Measurement
from rresnet.progress import Progress, duration

if TYPE_CHECKING:
    import pandas as pd

    from rresnet.cluster import Cluster
    from rresnet.sweep import Sweep

Cells = Callable[[Settings, Sequence[Device], hardware.Hardware], list[Cell]]
Planned = list[tuple[Trial, str | None]]  # with the reason why the trial can't run, or None

EARLY_SECONDS = 0.5  # for data that can be read, or refused, before Ray is started
USUAL_MODELS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
PROCESS_START_SECONDS = 12.0  # of a fresh trial process on 2 cores: Ray's actor, importing torch, moving the data


def run(
    name: str,
    settings: Settings,
    cells: Cells,
    console: Console,
    stop_asked: Callable[[], bool] = lambda: False,
    trainable: Callable[..., None] | None = None,
) -> bool:
    """Run an experiment; returns whether every planned trial is ok.

    Args:
        name: the experiment's.
        settings: its flags.
        cells: what it measures, from the settings.
        console: where it tells.
        stop_asked: whether the person has asked to stop, where the exception that says so may have been swallowed.
        trainable: what runs a trial, instead of training.

    Raises:
        UsageError, DataError, StoreError: the request is wrong or can't be met.
        KeyboardInterrupt: the person has stopped it; what was measured is stored.
    """
    here = hardware.probe()
    if settings.address is None:  # a wrong request is told at once, before anything starts
        planned = _plan(settings, cells, here)
        if settings.dry_run:
            _show_plan(planned, settings, console)
            return True
    store.check_writable(settings.results_dir)
    with ThreadPoolExecutor(1) as pool:  # Ray starts while the data is read
        images = pool.submit(
            data.load, settings.dataset, image_size=settings.image_size, data_dir=settings.data_dir, seed=settings.seed
        )
        if images in wait([images], timeout=EARLY_SECONDS).done:  # what is wrong with it is told at once
            _check_batches(settings, images.result())
        from rresnet import cluster as ray_cluster

        with ray_cluster.connect(settings.address, here) as cluster:
            planned = _plan(settings, cells, cluster.hardware)
            if settings.dry_run:
                _show_plan(planned, settings, console)
                return True
            return _measure(name, settings, planned, cluster, images, console, stop_asked, trainable)


def _plan(settings: Settings, cells: Cells, machine: hardware.Hardware) -> Planned:
    if settings.model not in USUAL_MODELS:
        from rresnet import model  # imports torch, which takes seconds: only to look up an unusual name

        model.check_name(settings.model)
    kinds: tuple[Device, ...] = ("cpu", "gpu") if machine.gpu_count else ("cpu",)
    wanted = cells(settings, settings.device or kinds, machine)
    reasons = {cell.cell_id: grid.infeasible(cell, machine) for cell in wanted}
    if all(reasons.values()):
        raise UsageError(_nothing_feasible(wanted, reasons, machine))
    trials = grid.plan(wanted, repeats=settings.repeats_planned, processes=settings.processes, seed=settings.seed)
    return [(trial, reasons[trial.cell.cell_id]) for trial in trials]


def _nothing_feasible(wanted: Sequence[Cell], reasons: dict[str, str | None], machine: hardware.Hardware) -> str:
    if {cell.device for cell in wanted} == {"gpu"} and not machine.gpu_count:
        return (
            f"no GPU in this Ray cluster ({machine.cpu_count} CPUs seen): "
            "drop --device gpu, or join a Ray cluster that has one with --address HOST:6379"
        )
    return f"nothing that was asked for can run here: {reasons[wanted[0].cell_id]}"


def _measure(
    name: str,
    settings: Settings,
    planned: Planned,
    cluster: "Cluster",
    loading: "Future[data.ImageData]",
    console: Console,
    stop_asked: Callable[[], bool],
    trainable: Callable[..., None] | None,
) -> bool:
    began, images = time.monotonic(), loading.result()
    _check_batches(settings, images)
    results = settings.results_dir
    new = _new_run(name, settings, planned, cluster.hardware)
    this = store.open_run(
        results, new, fresh=settings.fresh, again=settings.retry is not None, mix=settings.mix_environments
    )
    attempts, done = _ended(results, this)
    if settings.retry == "all":
        done = set()
    todo = [(trial, reason) for trial, reason in planned if trial.trial_id not in done]
    console.print(_opening(this, settings, planned, todo, cluster), highlight=False, soft_wrap=True)
    from rresnet.cluster import waiting_for

    if waiting := waiting_for(cluster):
        console.print(waiting, highlight=False, soft_wrap=True)
    writer = store.Writer(results, this)
    with _quiet_ray(console), writer, Progress(console, total=len(todo)) as progress:
        try:
            sweep = _sweep(this, settings, cluster, images, writer, progress, stop_asked, attempts, trainable)
            _execute(sweep, todo)
            if settings.target_interval:
                from rresnet import growth

                growth.grow(sweep, settings, _feasible_cells(planned), writer, progress, began=began)
        except Exception:
            writer.check()  # a full disk, say, which Tune tells as a failure of its own
            raise
    from rresnet import answer, regimes  # pandas and scipy: seconds that the start need not wait for

    changed = regimes.changed(store.read_tables(results, run_id=this.run_id)["trials"].to_pandas())
    writer.finish(_now(), changed, "machine_changed")
    trials = store.read_tables(results, run_id=this.run_id)["trials"].to_pandas()
    answer.show(trials, console, advice=settings.advice)
    console.print(_completion(trials), highlight=False, soft_wrap=True)
    console.print(f"Rows: {results / 'trials'} (run {this.run_id})", style="dim", highlight=False, soft_wrap=True)
    return not sweep.failed


def _sweep(
    this: store.Run,
    settings: Settings,
    cluster: "Cluster",
    images: data.ImageData,
    writer: store.Writer,
    progress: Progress,
    stop_asked: Callable[[], bool],
    attempts: Mapping[str, int],
    trainable: Callable[..., None] | None,
) -> "Sweep":
    import ray

    from rresnet.sweep import Sweep, run_trial

    return Sweep(
        run=this,
        cluster=cluster,
        data=ray.put(images),
        how=How(seconds=settings.seconds, timeout_seconds=settings.timeout_seconds_planned),
        write=writer.write,
        progress=progress,
        stop_asked=stop_asked,
        earlier=attempts,
        trainable=trainable or run_trial,
    )


def _completion(trials: "pd.DataFrame") -> str:
    ok = int((trials["status"] == "ok").sum())
    if ok == len(trials):
        return f"Run complete: all {ok} trials are ok."
    tell = f"Run complete: {ok} of {len(trials)} trials are ok."
    return f"{tell} The same command with --retry failed tries the others again."


def _feasible_cells(planned: Planned) -> list[Cell]:
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


def _ended(results: Path, this: store.Run) -> tuple[dict[str, int], set[str]]:
    """Attempts made at each trial that has a row, and the trials that are ok."""
    table = store.read_tables(results, run_id=this.run_id)["trials"]
    rows = table.select(["trial_id", "status", "attempt"]).to_pylist()
    return {r["trial_id"]: r["attempt"] for r in rows}, {r["trial_id"] for r in rows if r["status"] == "ok"}


def _check_batches(settings: Settings, images: data.ImageData) -> None:
    count = len(images.train.labels)
    for batch_size in settings.batch_size:
        if batch_size > count:
            raise UsageError(
                f"--batch-size {batch_size} is more than the {count} training images of {settings.dataset}: "
                f"give at most {count}, or a larger --dataset"
            )


def _opening(this: store.Run, settings: Settings, planned: Planned, todo: Planned, cluster: "Cluster") -> str:
    machine, cells = cluster.hardware, len({trial.cell.cell_id for trial, _ in planned})
    gpus = f", {machine.gpu_count} x {machine.gpu_name}" if machine.gpu_count else ", no GPU"
    lines = [
        f"{machine.hostname}: {machine.cpu_model}, {machine.cpu_count} CPUs{gpus}",
        f"{len(planned)} trials: {cells} cells x {settings.repeats_planned} repeats, {_processes(settings)} processes",
    ]
    if len(todo) < len(planned):
        lines.append(f"Continuing run {this.run_id}: {len(planned) - len(todo)} trials are done (--fresh starts anew)")
    impossible = dict.fromkeys(str(reason) for _, reason in todo if reason)
    lines += [f"infeasible, kept as rows: {reason}" for reason in impossible]
    return "\n".join(lines)


def _processes(settings: Settings) -> int:
    return min(settings.processes, settings.repeats_planned)


def _show_plan(planned: Planned, settings: Settings, console: Console) -> None:
    table = Table(title=f"{len(planned)} planned trials, in the order they run", title_justify="left")
    for heading in (
        "repeat",
        "process",
        "device",
        "recipe",
        "precision",
        "input",
        "batch size",
        "workers",
        "threads",
        "trial",
        "feasible",
    ):
        table.add_column(heading)
    for trial, reason in planned:
        cell = trial.cell
        values = (trial.repeat, trial.process, cell.device, cell.recipe, cell.precision, cell.input, cell.batch_size)
        table.add_row(*map(str, (*values, cell.num_workers, cell.cpu_threads, trial.trial_id, reason or "yes")))
    console.print(table)
    console.print(_prediction(planned, settings), highlight=False, soft_wrap=True)


def _prediction(planned: Planned, settings: Settings) -> str:
    from rresnet import analysis

    cell_ids = [trial.cell.cell_id for trial, reason in planned if reason is None]
    seconds: dict[str, float] = {}
    with contextlib.suppress(store.StoreError):
        seconds = analysis.trial_seconds(analysis.read(settings.results_dir).trials, cell_ids)
    if not seconds:
        return f"Predicted duration: not known until {settings.results_dir} holds a first result."
    total = sum(seconds[cell_id] for cell_id in cell_ids) + _processes(settings) * PROCESS_START_SECONDS
    return f"Predicted duration: {duration(total)}, from the trials in {settings.results_dir}."


def _now() -> str:
    return datetime.now(UTC).isoformat()


@contextlib.contextmanager
def _quiet_ray(console: Console) -> Iterator[None]:
    """Keep what Ray prints in a file, and show its end when something unforeseen is raised."""
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        try:
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                yield
        except store.StoreError:
            raise
        except Exception:
            log.seek(0)
            console.print("Ray's last words:", log.read()[-4000:], markup=False, highlight=False)
            raise
