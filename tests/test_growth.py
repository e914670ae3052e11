import contextlib
from dataclasses import asdict, replace
from types import SimpleNamespace

import pandas as pd
import pytest
from rich.console import Console
from samples import IMAGES, LAPTOP, make_cell

from rresnet import grid
from rresnet.cell import UsageError
from rresnet.config import Settings
from rresnet.experiments import experiment, growth
from rresnet.experiments.running import Experiment
from rresnet.tables.measurement import TRIALS

CELLS = [make_cell(recipe="blog"), make_cell(recipe="tuned")]


class FakeSweep:
    """Rows at once, whose ratio scatters less and less."""

    def __init__(self, settings, scatter):
        self.scatter, self.rows, self.extensions = scatter, [], []
        self.execute(grid.plan(CELLS, repeats=settings.repeats_planned, processes=settings.processes_planned, seed=42))
        self.extensions.clear()

    def execute(self, trials):
        self.extensions.append([(t.repeat, t.process) for t in trials])
        for trial in trials:
            rate = 200.0 * (1 + self.scatter * (-1) ** trial.repeat) if trial.cell.recipe == "tuned" else 100.0
            row = {**asdict(trial.cell), "cell_id": trial.cell.cell_id, "trial_id": trial.trial_id, "run_id": "r"}
            self.rows = [r for r in self.rows if r["trial_id"] != trial.trial_id]  # as the store does
            row |= {"hostname": "vm", "repeat": trial.repeat, "process": trial.process, "status": "ok"}
            self.rows.append(
                {**row, "images_per_second": rate, "epoch_seconds": 1.0, "epoch_seconds_kind": "projected"}
            )


class FakeProgress:
    def __init__(self):
        self.lines = []

    def more(self, trials, why):
        self.lines.append((trials, why))

    def note(self, why):
        self.lines.append((0, why))


def grow(monkeypatch, sweep, settings, began=0.0, clock=0.0, again=()):
    columns = [f.name for f in TRIALS]
    monkeypatch.setattr(growth, "rows_so_far", lambda *_: pd.DataFrame(sweep.rows).reindex(columns=columns))
    monkeypatch.setattr(growth.time, "monotonic", lambda: clock)
    sweep.progress = FakeProgress()
    growth.grow(sweep, CELLS, again, settings=settings, began=began)
    return sweep.progress.lines


def test_nothing_is_added_where_the_interval_is_tight_enough(monkeypatch):
    settings = Settings(repeats=6, target_interval=0.02)
    sweep = FakeSweep(settings, scatter=0.0001)
    assert grow(monkeypatch, sweep, settings) == []
    assert sweep.extensions == []


def test_extensions_are_added_in_fresh_processes_until_it_is(monkeypatch):
    settings = Settings(repeats=6, processes=3, target_interval=0.08)
    sweep = FakeSweep(settings, scatter=0.02)
    lines = grow(monkeypatch, sweep, settings)
    assert sweep.extensions[0] == [(6, 3), (6, 3), (7, 3), (7, 3)]
    assert sweep.extensions[1][0] == (8, 4)
    assert lines[0][0] == 4
    assert "±8.0 % was asked for: 4 more trials" in lines[0][1]
    assert grow(monkeypatch, sweep, settings) == []


def test_time_that_is_over_ends_it_and_says_what_would_do(monkeypatch):
    settings = Settings(repeats=6, target_interval=0.001, max_minutes=1.0)
    sweep = FakeSweep(settings, scatter=0.02)
    ((added, why),) = grow(monkeypatch, sweep, settings, clock=61.0)
    assert added == 0
    assert "not even 10,000 repeats would do; --max-minutes 1 is used up" in why
    assert sweep.extensions == []


def test_what_would_do_is_told_for_the_fresh_processes_that_extensions_bring(monkeypatch):
    # One of three processes is 20 % faster: no number of repeats in these three would do.
    settings = Settings(repeats=6, processes=3, target_interval=0.1, max_minutes=1.0)
    sweep = FakeSweep(settings, scatter=0.001)
    for row in sweep.rows:
        row["images_per_second"] *= 1.2 if (row["process"], row["recipe"]) == (1, "tuned") else 1.0
    ((_, why),) = grow(monkeypatch, sweep, settings, clock=61.0)
    assert " repeats would do; --max-minutes 1 is used up" in why


def test_what_failed_in_an_extension_is_tried_again_where_that_is_asked_for(monkeypatch):
    settings = Settings(repeats=6, processes=3, target_interval=0.5)
    sweep = FakeSweep(settings, scatter=0.0001)
    extension = grid.more(CELLS, 0, repeats=6, processes=3, seed=42)
    sweep.execute(extension)
    sweep.extensions.clear()
    grow(monkeypatch, sweep, settings, again={extension[1].trial_id})
    assert sweep.extensions == [[(extension[1].repeat, extension[1].process)]]


def test_what_is_to_be_tried_again_is_whatever_the_time(monkeypatch):
    settings = Settings(repeats=6, processes=3, target_interval=0.001, max_minutes=1.0)
    sweep = FakeSweep(settings, scatter=0.02)
    for extension in range(2):
        sweep.execute(grid.more(CELLS, extension, repeats=6, processes=3, seed=42))
    sizes = [len(extension) for extension in sweep.extensions]
    everything = {row["trial_id"] for row in sweep.rows}
    sweep.extensions.clear()
    lines = grow(monkeypatch, sweep, settings, clock=61.0, again=everything)
    assert [len(extension) for extension in sweep.extensions] == sizes
    assert lines[-1][0] == 0
    assert "is used up" in lines[-1][1]


def test_an_extension_that_was_interrupted_is_completed_even_if_the_interval_is_tight(monkeypatch):
    settings = Settings(repeats=6, processes=3, target_interval=0.5)
    sweep = FakeSweep(settings, scatter=0.0001)
    sweep.execute(grid.more(CELLS, 0, repeats=6, processes=3, seed=42)[:1])
    sweep.extensions.clear()
    grow(monkeypatch, sweep, settings)
    assert [len(extension) for extension in sweep.extensions] == [3]


@pytest.mark.parametrize(("status", "fine"), [("ok", True), ("error", False)])
def test_what_failed_in_an_extension_before_an_interruption_still_counts(status, fine, monkeypatch, tmp_path):
    settings = Settings(repeats=6, processes=3, target_interval=0.5, results_dir=str(tmp_path))
    sweep = FakeSweep(settings, scatter=0.0001)
    sweep.execute(grid.more(CELLS, 0, repeats=6, processes=3, seed=42))
    sweep.rows[-1]["status"] = status
    rows = pd.DataFrame(sweep.rows).reindex(columns=[f.name for f in TRIALS])
    monkeypatch.setattr(experiment.running, "measured", lambda *given, **named: rows)
    shown = Experiment(name="compare", show=lambda *of: None)
    setup = SimpleNamespace(console=Console(quiet=True), machines=[SimpleNamespace(hardware=LAPTOP)], images=IMAGES)
    assert experiment._measure(shown, settings, setup) is fine

    def interrupted(*of):
        raise KeyboardInterrupt

    with pytest.raises(experiment.StoppedAfterAll) as stopped:  # nothing is left to do but to print it
        experiment._measure(replace(shown, show=interrupted), settings, setup)
    assert (stopped.value.fine, stopped.value.results_dir) == (fine, str(tmp_path))


@pytest.mark.parametrize(("measured", "raised"), [(True, experiment.StoppedAfterAll), (None, KeyboardInterrupt)])
def test_an_interrupt_while_ray_ends_finds_a_run_that_is_complete(monkeypatch, tmp_path, measured, raised):
    @contextlib.contextmanager
    def ending(*of):
        yield (SimpleNamespace(hardware=LAPTOP),)
        raise KeyboardInterrupt

    def measure(*of):
        if measured is None:
            raise KeyboardInterrupt
        return measured

    monkeypatch.setattr("rresnet.runner.cluster.connect", ending)
    monkeypatch.setattr(experiment, "_measure", measure)
    with pytest.raises(KeyboardInterrupt) as stopped:
        experiment.run(
            Experiment(name="compare"), Settings(batch_size=(8,), results_dir=str(tmp_path)), Console(quiet=True)
        )
    assert stopped.type is raised


def test_a_plan_too_small_for_an_interval_is_gone_on_with_until_there_is_one(monkeypatch):
    settings = Settings(repeats=2, processes=1, target_interval=0.5)
    sweep = FakeSweep(settings, scatter=0.0001)
    lines = grow(monkeypatch, sweep, settings)
    assert lines[0] == (4, "No interval yet: 4 more trials")
    assert sweep.extensions == [[(2, 1), (2, 1), (3, 1), (3, 1)]]


def test_a_single_cell_has_no_interval_to_wait_for(monkeypatch):
    settings = Settings(repeats=6, processes=3, target_interval=0.05)
    monkeypatch.setattr("test_growth.CELLS", CELLS[:1])
    sweep = FakeSweep(settings, scatter=0.0)
    lines = grow(monkeypatch, sweep, settings)
    assert lines == [(0, "--target-interval adds nothing: no two settings have a speedup to know better")]
    assert sweep.extensions == []


def test_the_extension_follows_the_plan():
    plan = grid.plan(CELLS, repeats=6, processes=3, seed=1)
    more = [t for extension in (0, 1) for t in grid.more(CELLS, extension, repeats=6, processes=3, seed=1)]
    assert [t.repeat for t in (*plan, *more)] == [r for r in range(10) for _ in CELLS]
    assert sorted({t.process for t in more}) == [3, 4]
    other = [t for extension in range(8) for t in grid.more(CELLS, extension, repeats=6, processes=3, seed=2)]
    assert other != [t for extension in range(8) for t in grid.more(CELLS, extension, repeats=6, processes=3, seed=1)]
    assert len({t.trial_id for t in (*plan, *more)}) == 20


@pytest.mark.parametrize("wrong", [{"target_interval": 0.0}, {"target_interval": 1.5}, {"max_minutes": 0.0}])
def test_wrong_targets_are_told(wrong):
    with pytest.raises(UsageError, match="must be"):
        Settings(**wrong)
