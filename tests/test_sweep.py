"""The driver's side, without Ray: what becomes of trials whose process Ray's memory monitor ended."""

import cProfile
from types import SimpleNamespace

import pytest
import ray
from conftest import LAPTOP, make_cell
from ray import tune
from ray.tune.impl.placeholder import create_resolvers_map, inject_placeholders
from ray.tune.search.variant_generator import generate_variants

from rresnet import grid
from rresnet.cluster import Cluster
from rresnet.config import How, Trial
from rresnet.store import Run
from rresnet.sweep import Sweep

CELLS = [make_cell(batch_size=size) for size in (1, 2, 3)]
HUNGRY = 2  # the batch size that Ray ends the process at


class Evicting(Sweep):
    """A sweep whose processes are ended when the hungry trial runs, as Tune tells it."""

    def _tune(self, trials, resources, callback):
        self.processes.append([trial.cell.batch_size for trial in trials])
        for planned in trials:
            tunes = SimpleNamespace(trial_id=planned.trial_id, config={"trial": planned.to_json()}, error_file=None)
            callback.on_trial_start(0, [], tunes)
            if planned.cell.batch_size == HUNGRY:
                raise RuntimeError("Tune gives up") from ray.exceptions.OutOfMemoryError("the node runs low on memory")
            record = {"measurement": {"status": "ok"}}
            callback.on_trial_result(
                0, [], tunes, {"record": record, "environment": {}, "when": {}, "alone": len(trials) == 1}
            )


def swept(kind=Evicting, repeats=2):
    progress = SimpleNamespace(running=lambda trial: None, finished=lambda trial, measurement: None)
    sweep = kind(
        run=Run(run_id="r", experiment="e", name="n", plan_id="p", planned=6, started_at=""),
        cluster=Cluster(hardware=LAPTOP),
        data=None,
        how=How(seconds=1.0),
        write=lambda trial_id, rows: sweep.rows.extend(rows["trials"]),
        keep=lambda name, content: None,
        progress=progress,
    )
    sweep.rows, sweep.processes = [], []
    sweep.execute(grid.plan(CELLS, repeats=repeats, processes=1, seed=4))
    return sweep


def test_each_trial_is_one_row_when_the_memory_monitor_ends_the_process():
    sweep = swept()
    told = sorted((row["batch_size"], row["repeat"], row["status"]) for row in sweep.rows)
    assert told == [(size, r, "out_of_memory" if size == HUNGRY else "ok") for size in (1, 2, 3) for r in (0, 1)]
    assert [HUNGRY] in sweep.processes  # it was tried alone before it was believed
    assert sum(of_process == [HUNGRY] for of_process in sweep.processes) == 1  # and the cell not again after that
    first = next(row for row in sweep.rows if row["status"] == "out_of_memory" and row["attempt"] == 2)
    assert "low on memory" in first["error_message"]


def test_another_failure_of_tune_is_not_taken_for_it():
    class Broken(Sweep):
        def _tune(self, trials, resources, callback):
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        swept(Broken)


def test_tune_copies_a_large_grid_for_each_trial_and_what_it_copies_is_little():
    """In the way of a real Tuner. A trial as nested dicts takes 200 calls and more for each of the values."""
    trials = grid.plan(CELLS, repeats=100, processes=1, seed=4)
    space = {"trial": tune.grid_search([trial.to_json() for trial in trials])}
    prepared = inject_placeholders(space, create_resolvers_map())
    profile = cProfile.Profile()
    made = profile.runcall(lambda: list(generate_variants({"config": prepared})))
    assert [Trial.from_json(spec["config"]["trial"]) for _, spec in made] == trials
    calls = sum(entry.callcount for entry in profile.getstats())
    assert calls < 10 * len(trials) ** 2
