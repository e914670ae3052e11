"""An experiment from its settings to its answer: what it is measured with, its runs, and what is shown."""

import functools
import shlex
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console

from rresnet import data, hardware
from rresnet.config import AUTO, OF_SIZES, Settings
from rresnet.experiments import planning, running
from rresnet.experiments.running import Experiment, Extend, Setup
from rresnet.tables import place
from rresnet.terminal import say

if TYPE_CHECKING:
    import pandas as pd

    from rresnet.runner.machines import Machine

# All else of a machine may decide which settings the flags mean there, and which of them can run.
UNDECIDING = ("hostname", "cpu_model", "gpu_name", "driver_version", "variables")
EARLY_SECONDS = 0.5  # for data to be read, or rejected, before Ray is started


class StoppedAfterAll(KeyboardInterrupt):
    """The user has stopped the command when every trial had run: only the answer was not printed to its end."""

    def __init__(self, fine: bool, results_dir: str) -> None:
        """`fine` says whether all trials are ok."""
        super().__init__()
        self.fine, self.results_dir = fine, results_dir


def run(
    experiment: Experiment, settings: Settings, console: Console, stop_asked: Callable[[], bool] = lambda: False
) -> bool:
    """Run an experiment and return whether every trial of the run is ok.

    `stop_asked` says whether the user has asked to stop, because the exception that says so may have been swallowed.

    Raises:
        UsageError, DataError, StoreError: the request is wrong or can't be met.
        KeyboardInterrupt: the user has stopped it; what was measured is stored.
    """
    here, begin, tell = hardware.probe(), _beginning(settings), functools.partial(say, console)
    data.check_known(settings.dataset)
    say(console, _unused(settings))
    place.at(settings.results_dir).check_writable()
    if settings.address is None:  # a wrong request is reported at once, before anything starts
        planned = planning.plan(begin, experiment.cells, here)
        if settings.dry_run:
            unchecked = _unchecked(planned, settings)
            _show(experiment.name, planned, settings, console)
            say(console, unchecked)
            return True
    images = _loading(settings, stop_asked)  # Ray starts while the data is read
    if images in wait([images], timeout=EARLY_SECONDS).done:  # errors in it are reported at once
        images.result()
        if settings.address is None and settings.batch_size != AUTO:
            planning.check_batches(planned, images.result())
    from rresnet.runner import cluster as ray_cluster
    from rresnet.runner.machines import Wanted

    wanted = Wanted(
        gpu="gpu" in settings.device,
        accelerator_type=settings.accelerator_type,
        count=settings.machines,
        wait_seconds=settings.wait_seconds,
    )
    fine: bool | None = None
    try:
        with ray_cluster.connect(settings.address, here, wanted, tell) as joined:
            machines = _alike(joined, begin, experiment.cells, tell)
            planned = planning.plan(begin, experiment.cells, machines[0].hardware, len(machines))
            setup = Setup(machines=machines, images=images.result(), console=console, stop_asked=stop_asked)
            if settings.batch_size != AUTO:  # auto looks only at sizes that there are images for
                planning.check_batches(planned, setup.images)
            if settings.dry_run:
                _show(experiment.name, planned, settings, console)
                return True
            fine = _measure(experiment, settings, setup)
    except KeyboardInterrupt as stopped:
        if fine is None:
            raise
        raise StoppedAfterAll(fine, settings.results_dir) from stopped  # while Ray ended
    return bool(fine)


def _unused(settings: Settings) -> list[str]:
    """Say which of the flags given do nothing."""
    told = []
    if settings.epochs and settings.seconds != type(settings).seconds:
        told.append("--seconds is not used: --epochs trains whole epochs")
    if settings.data_dir and not data.uses_data_dir(settings.dataset):
        told.append(f"--data-dir is not used: no files of --dataset {settings.dataset} lie there")
    return told


def _loading(settings: Settings, stop_asked: Callable[[], bool]) -> "Future[data.ImageData]":
    """Load the data on a thread that the program does not wait for when it ends: a download may hang for minutes."""
    images = Future[data.ImageData]()

    def load() -> None:
        try:
            found = data.load(
                settings.dataset,
                image_size=settings.image_size,
                data_dir=settings.data_dir,
                seed=settings.seed,
                stop=stop_asked,
            )
            images.set_result(found)
        except BaseException as error:  # also what ends a thread: whoever waits for the data gets it
            images.set_exception(error)

    threading.Thread(target=load, name="rresnet-data", daemon=True).start()
    return images


def _unchecked(planned: planning.Plan, settings: Settings) -> list[str]:
    """Check the batches of a dry run, which does not wait for data; return a sentence on what stays unchecked."""
    if settings.batch_size == AUTO:
        return []
    if settings.dataset not in data.MADE_AT:
        return [
            f"Not checked: whether {settings.dataset} can be read, and has enough images for each batch. A dry run "
            "does not load them."
        ]
    images = data.load(settings.dataset, image_size=data.MADE_AT[settings.dataset])
    count, channels = len(images.train.labels) + len(images.test.labels), images.train.images.shape[1]
    data.check_memory(settings.dataset, count, channels, settings.image_size)
    planning.check_batches(planned, images)
    return []


def _show(name: str, planned: planning.Plan, settings: Settings, console: Console) -> None:
    """Print what would run, and what of it is done; if batch sizes are to be found, what follows the first probes."""
    searched = settings.batch_size == AUTO
    earlier = (None, set[str]()) if searched else running.continued(name, settings)
    planning.show(planned, _beginning(settings), console, *earlier)
    if searched:
        from rresnet.experiments import search

        say(console, search.plan_of(settings))


def _alike(
    joined: "tuple[Machine, ...]", settings: Settings, cells: planning.Cells, tell: Callable[[str], None]
) -> "tuple[Machine, ...]":
    """The machines on which the settings mean the same cells as on the first."""
    first, *others = joined
    same = [one for one in others if planning.alike(settings, cells, first.hardware, one.hardware)]
    for one in others:
        if one not in same:
            here, there = vars(one.hardware), vars(first.hardware)
            names = (name for name in here if name not in UNDECIDING and here[name] != there[name])
            unlike = [f"{name.replace('_', ' ')} {here[name]}" for name in names]
            tell(
                f"{one.hardware.hostname} does not measure: with {', '.join(unlike)} the flags mean other settings "
                f"there than on {first.hardware.hostname}"
            )
    return first, *same


def _beginning(settings: Settings) -> Settings:
    """The settings of what runs first: those of the first probes if batch sizes are to be found."""
    if settings.batch_size != AUTO:
        return settings
    from rresnet.experiments import search

    return search.first(settings)


def _measure(experiment: Experiment, settings: Settings, setup: Setup) -> bool:
    """Run what was asked for, and print the answer."""
    say(setup.console, planning.conditions(settings, [one.hardware for one in setup.machines], setup.images))
    searched = settings.batch_size == AUTO
    if searched:
        experiment, settings = _find_batch_sizes(experiment, settings, setup)
    extend: Extend | None = None
    if settings.target_interval:
        from rresnet.experiments import growth

        extend = functools.partial(growth.grow, settings=settings, began=time.monotonic())
    trials = running.measured(experiment, settings, setup, extend)
    fine = bool((trials["status"] == "ok").all())  # including those that an earlier command has run
    try:
        _answer(trials, experiment, settings, setup.console, searched=searched)
    except KeyboardInterrupt as stopped:
        raise StoppedAfterAll(fine, settings.results_dir) from stopped
    return fine


def _answer(
    trials: "pd.DataFrame", experiment: Experiment, settings: Settings, console: Console, *, searched: bool
) -> None:
    from rresnet.analysis import compiling, scaling  # pandas and scipy: would delay the start by seconds
    from rresnet.experiments import printing

    if experiment.show:
        experiment.show(trials, console, settings.results_dir)
    else:
        printing.findings(trials, console, searched=searched)
        say(console, [*scaling.summary(trials), *compiling.summary(trials)])
    printing.remarks(trials, console, advice=settings.advice)
    say(console, _completion(trials))
    run_id = trials["run_id"].iloc[0]
    say(console, f"Rows: {place.at(settings.results_dir).full_name('trials')} (run {run_id})", "dim")
    say(console, f"As a page: rresnet report {shlex.quote(settings.results_dir)}", "dim")


def _find_batch_sizes(experiment: Experiment, settings: Settings, setup: Setup) -> tuple[Experiment, Settings]:
    """Probe batch sizes in a run of their own; return the experiment and settings for those worth measuring."""
    from rresnet.experiments import search

    most = len(setup.images.train.labels)
    begin = search.first(settings, most=max(1, most // max(settings.num_workers)))
    probing = replace(experiment, name=f"{settings.name or experiment.name}{OF_SIZES}")
    extend = functools.partial(search.probe, most=most)
    probed = running.measured(probing, begin, setup, extend, reuse=True)  # sizes that are known are not probed again
    result = search.result(probed, most=most)
    say(setup.console, result.summary)
    return (
        replace(experiment, cells=lambda *of: [cell for cell in experiment.cells(*of) if result.fits(cell)]),
        replace(settings, batch_size=result.sizes),
    )


def _completion(trials: "pd.DataFrame") -> str:
    ok, infeasible = (int((trials["status"] == status).sum()) for status in ("ok", "infeasible"))
    if ok == len(trials):
        return f"Run complete: {'its one trial is' if ok == 1 else f'all {ok} trials are'} ok."
    told = [f"Run complete: {ok} of {len(trials)} trials are ok."]
    if infeasible:
        told.append(f"{infeasible} can't run here; their rows say why.")
    if ok + infeasible < len(trials):
        told.append("The same command with --retry failed tries the others again.")
    return " ".join(told)
