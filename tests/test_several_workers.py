"""The driver's side, without Ray: trials of several workers, which take turns with the others."""

from types import SimpleNamespace

import pytest
from lanes import HUNGRY, FakeLane, FakeMachine, plan_of, swept
from samples import LAPTOP, make_cell

from rresnet import grid
from rresnet.runner import lane
from rresnet.runner.agenda import Agenda
from rresnet.runner.events import TrialProcess
from rresnet.runner.lane import Lane
from rresnet.runner.layout import Layout


def test_trials_of_several_workers_take_turns_with_the_others_in_one_process():
    told = []  # for each process: workers, repeat, and what the trial process is told

    class Noting(FakeLane):
        def _tune(self, handout, callback, groups):
            told.append([])
            super()._tune(handout, callback, groups)

        def run_one(self, trial, config, tunes, callback, alone):
            told[-1].append((trial.cell.num_workers, trial.repeat, config))
            super().run_one(trial, config, tunes, callback, alone)

    cells = [make_cell(num_workers=n, batch_size=size) for n in (1, 2, 4) for size in (8, 16)]
    swept(Noting, repeats=4, processes=2, cells=cells)
    assert [[repeat for _, repeat, _ in of_process] for of_process in told] == [[0] * 6 + [1] * 6, [2] * 6 + [3] * 6]
    for of_process in told:
        assert [config["is_last"] for _, _, config in of_process] == [False] * 11 + [True]
        assert {n: config["nodes"] for n, _, config in of_process} == {n: ("a",) * n for n in (1, 2, 4)}
        assert {config["groups"]["cpu"].nodes for _, _, config in of_process} == {("a",) * 4}


def test_without_several_workers_there_is_no_group_to_let_go():
    told = []

    class Noting(FakeLane):
        def run_one(self, trial, config, tunes, callback, alone):
            told.append((len(config["groups"]), config["is_last"]))
            super().run_one(trial, config, tunes, callback, alone)

    swept(Noting)
    assert set(told) == {(0, False)}


def test_no_group_is_there_for_what_is_known_to_be_too_large():
    large, smaller, one = (make_cell(num_workers=n) for n in (4, 2, 1))
    processes = []

    class Noting(FakeLane):
        def _tune(self, handout, callback, groups):
            processes.append([len(those.nodes) for those in groups])
            super()._tune(handout, callback, groups)

        def run_one(self, trial, config, tunes, callback, alone):
            if len(processes) == 1:
                self._too_large[large.cell_id] = "no memory"
            if len(processes) == 2:
                self._too_large[smaller.cell_id] = "no memory"
            super().run_one(trial, config, tunes, callback, alone)

    seed = next(seed for seed in range(9) if plan_of([large, smaller, one], seed)[0].cell == one)
    sweep = swept(Noting, repeats=3, processes=3, cells=[large, smaller, one], seed=seed)
    assert processes == [[4], [2], []]
    assert sorted(row["num_workers"] for row in sweep.rows if row["status"] == "out_of_memory")[-3:] == [4, 4, 4]
    assert len(sweep.rows) == 9


def test_a_process_has_the_groups_of_what_may_still_come_to_it():
    one, two = make_cell(), make_cell(num_workers=2)
    agenda = Agenda([*grid.plan([one, two], repeats=1, processes=1, seed=1), *plan_of([one], seed=1)])
    assert {cell.num_workers for cell in agenda.cells_of(0)} == {1, 2}
    assert agenda.cells_of(1) == []
    lane = Lane(SimpleNamespace(), FakeMachine(node_id="a", hardware=LAPTOP), agenda)
    assert lane._can_come(plan_of([one], seed=1), None) == [one]
    assert set(lane._can_come(plan_of([one], seed=1), 0)) == {one, two}


def test_after_a_machine_of_workers_is_lost_the_next_process_has_workers_elsewhere(monkeypatch):
    monkeypatch.setattr(FakeMachine, "dead", frozenset())
    told = []

    class Losing(FakeLane):
        def run_one(self, trial, config, tunes, callback, alone):
            told.append((len(self.sweep.processes), trial.cell.num_nodes, config["groups"]["cpu"].nodes))
            if len(told) == 1:
                FakeMachine.dead = frozenset("b")
            super().run_one(trial, config, tunes, callback, alone)

    cells = [make_cell(num_workers=2, num_nodes=2), make_cell(num_workers=2), make_cell()]
    sweep = swept(Losing, repeats=2, machines=("a", "b"), cells=cells)
    assert told[0][2] == ("a", "a", "b")
    assert {(process, nodes) for process, _, nodes in told[1:]} == {(2, ("a", "a"))}
    assert len(sweep.rows) == 6


def test_alone_a_trial_has_no_workers_beside_its_own():
    processes = []

    class Noting(FakeLane):
        def _tune(self, handout, callback, groups):
            processes.append([those.nodes for those in groups])
            super()._tune(handout, callback, groups)

        def run_one(self, trial, config, tunes, callback, alone):
            self.tell(tunes, callback, alone=len(processes) > 1, status="out_of_memory", error_message="no memory")

    swept(Noting, repeats=1, cells=[make_cell(num_workers=n) for n in (1, 2, 4)])
    assert processes[0] == [("a",) * 4]
    assert sorted(processes[1:]) == [[], [("a", "a")], [("a",) * 4]]


def test_running_out_of_memory_is_believed_of_several_workers_too_once_it_happened_alone():
    class Starving(FakeLane):
        def run_one(self, trial, config, tunes, callback, alone):
            if trial.cell.batch_size != HUNGRY:
                return super().run_one(trial, config, tunes, callback, alone)
            return self.tell(tunes, callback, alone=alone, status="out_of_memory", error_message="no memory")

    cells = [make_cell(batch_size=size, num_workers=2) for size in (1, HUNGRY, 3)]
    seed = next(seed for seed in range(9) if plan_of(cells, seed)[0].cell.batch_size != HUNGRY)
    sweep = swept(Starving, cells=cells, seed=seed)
    hungry = [trial for _, of_process in sweep.processes for trial in of_process if trial[0] == HUNGRY]
    assert len(hungry) == 3  # in each repeat, and the first once more, alone; what has waited for that is not tried
    told = sorted(row["attempt"] for row in sweep.rows if row["status"] == "out_of_memory")
    assert told == [1, 2]
    assert len(sweep.rows) == 6


@pytest.mark.parametrize("as_first", [True, False])
@pytest.mark.parametrize(("killed", "status"), [(1, "out_of_memory"), (0, "killed")])
def test_a_worker_that_the_kernel_killed_for_want_of_memory_is_tried_again_alone(killed, status, as_first, monkeypatch):
    monkeypatch.setattr(FakeMachine, "killed", 0)

    class WorkerKilled(FakeLane):
        """The trial process tells that a worker was killed."""

        def run_one(self, trial, config, tunes, callback, alone):
            if trial.cell.batch_size != HUNGRY:
                return super().run_one(trial, config, tunes, callback, alone)
            FakeMachine.killed += killed
            found = {"status": "killed", "error_message": "a worker has died", "output_tail": "its last words"}
            return self.tell(tunes, callback, alone=alone, **found)

    cells = [make_cell(batch_size=size, num_workers=2) for size in (1, HUNGRY, 3)]
    first = next(seed for seed in range(9) if (plan_of(cells, seed)[0].cell.batch_size == HUNGRY) is as_first)
    sweep = swept(WorkerKilled, repeats=1, cells=cells, seed=first)
    (row,) = [row for row in sweep.rows if row["batch_size"] == HUNGRY]
    assert (row["status"], row["attempt"]) == (status, 2 if killed else 1)
    assert (row["output_tail"], row["hostname"]) == ("its last words", "a")
    assert len(sweep.rows) == 3


def test_that_workers_start_is_told():
    notes = []
    sweep = SimpleNamespace(progress=SimpleNamespace(note=notes.append))
    lane = SimpleNamespace(sweep=sweep, machine=FakeMachine(node_id="a", hardware=LAPTOP))
    TrialProcess(lane, 1).on_trial_result(0, [], None, {"workers_to_start": 4})
    assert notes == ["starting 4 workers, which takes 10 s or more"]


@pytest.mark.parametrize(("names", "num_nodes", "alone"), [("a", 1, True), ("ab", 1, False), ("ab", 2, True)])
def test_before_a_process_its_machine_is_given_back_and_all_that_workers_take_is_waited_for(
    names, num_nodes, alone, monkeypatch
):
    asked = []

    def wait(those, check, tell):
        asked.append("".join(machine.node_id for machine in those))
        raise TimeoutError  # as far as this test goes

    monkeypatch.setattr(FakeMachine, "release", lambda self, *, alone: asked.append((self.node_id, alone)))
    monkeypatch.setattr(lane.machines, "wait_until_free", wait)
    there = tuple(FakeMachine(node_id=name, hardware=LAPTOP) for name in names)
    sweep = SimpleNamespace(machines=there, check_stop=None, progress=SimpleNamespace(note=None))
    one = Lane(sweep, there[0], Agenda(plan_of([make_cell(num_workers=2, num_nodes=num_nodes)], seed=1)))
    with pytest.raises(TimeoutError):
        one._tune(None, None, [Layout(device="cpu", nodes=tuple("ab"[:num_nodes]), cores=1)])
    assert asked == [("a", alone), "ab"[:num_nodes]]
