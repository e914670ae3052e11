"""Lanes and machines without Ray, for tests of what becomes of trials."""

from types import SimpleNamespace

from samples import LAPTOP, make_cell

from rresnet import grid
from rresnet.config import How
from rresnet.runner.lane import Lane
from rresnet.runner.machines import Machine
from rresnet.runner.sweep import Sweep
from rresnet.tables.measurement import Environment, Measurement, Record
from rresnet.tables.runs import Run

CELLS = [make_cell(batch_size=size) for size in (1, 2, 3)]
HUNGRY = 2  # the batch size that Ray ends the process at


class FakeLane(Lane):
    """A lane without Ray: trials begin and end as Tune tells it. What it met stands in `sweep.processes`."""

    def _tune(self, handout, callback, groups):
        of_process = []
        self.sweep.processes.append((self.machine.node_id, of_process))
        while trial := handout.take():
            of_process.append((trial.cell.batch_size, trial.repeat))
            tunes = SimpleNamespace(planned=trial, error_file=None, temporary_state=SimpleNamespace(ray_actor="actor"))
            callback.on_step_begin(0, [])
            callback.on_trial_start(0, [], tunes)
            self.run_one(trial, handout._config(trial), tunes, callback, alone=len(of_process) == 1)

    def run_one(self, trial, config, tunes, callback, alone):
        self.tell(tunes, callback, alone=alone, status="ok")

    def tell(self, tunes, callback, *, alone, **found):
        """What a trial process sends."""
        here = Environment(hostname=self.machine.node_id)
        record = Record(measurement=Measurement(**found), environment=here)
        callback.on_trial_result(0, [], tunes, {"outcome": (record, alone)})


def swept(lane=FakeLane, repeats=2, machines=("a",), processes=1, cells=CELLS, seed=4):
    notes = []
    progress = SimpleNamespace(running=lambda trial: None, finished=lambda *of: None, note=notes.append)
    there = tuple(FakeMachine(node_id=name, hardware=LAPTOP) for name in machines)
    sweep = Sweep(
        machines=there,
        data=None,
        how=How(seconds=1.0),
        writer=SimpleNamespace(
            run=Run(run_id="r", experiment="e", name="n", plan_id="p", planned=6, started_at=""),
            write=lambda trial_id, rows: sweep.rows.extend(rows["trials"]),
            keep=lambda name, content: None,
        ),
        progress=progress,
        lane=lane,
    )
    sweep.rows, sweep.processes, sweep.notes = [], [], notes
    sweep.execute(grid.plan(cells, repeats=repeats, processes=processes, seed=seed))
    return sweep


class FakeMachine(Machine):
    dead = frozenset()
    killed = 0

    def alive(self):
        return self.node_id not in self.dead

    def kills_for_memory(self):
        return self.killed


def plan_of(cells, seed):
    return grid.plan(cells, repeats=1, processes=1, seed=seed)
