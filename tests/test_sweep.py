"""The driver's side, without Ray: what becomes of trials whose process Ray's memory monitor ended."""

import threading
from collections import deque
from types import SimpleNamespace

import pytest
import ray
from samples import LAPTOP, make_cell

from rresnet import grid
from rresnet.config import How
from rresnet.runner.agenda import Agenda
from rresnet.runner.cluster import Cluster, ClusterLostError
from rresnet.runner.lane import Lane
from rresnet.runner.machines import Machine
from rresnet.runner.sweep import Sweep
from rresnet.tables.runs import Run

CELLS = [make_cell(batch_size=size) for size in (1, 2, 3)]
HUNGRY = 2  # the batch size that Ray ends the process at


class FakeLane(Lane):
    """A lane without Ray: trials begin and end as Tune tells it. What it met stands in `sweep.processes`."""

    def _tune(self, planned, callback, groups):
        of_process = []
        self.sweep.processes.append((self.machine.node_id, of_process))
        while trial := planned.take():
            of_process.append((trial.cell.batch_size, trial.repeat))
            tunes = SimpleNamespace(planned=trial, error_file=None)
            callback.on_step_begin(0, [])
            callback.on_trial_start(0, [], tunes)
            self.run_one(trial, planned._config(trial), tunes, callback, alone=len(of_process) == 1)

    def run_one(self, trial, config, tunes, callback, alone):
        result = {"record": {"measurement": {"status": "ok"}}, "environment": {"hostname": self.machine.node_id}}
        callback.on_trial_result(0, [], tunes, {"outcome": [{**result, "when": {}, "alone": alone}]})


class Evicting(FakeLane):
    """Its process is ended when the hungry trial runs."""

    def run_one(self, trial, config, tunes, callback, alone):
        if trial.cell.batch_size == HUNGRY:
            raise RuntimeError("Tune gives up") from ray.exceptions.OutOfMemoryError("the node runs low on memory")
        super().run_one(trial, config, tunes, callback, alone)


def swept(lane=Evicting, repeats=2, machines=("a",), processes=1, cells=CELLS, seed=4):
    notes = []
    progress = SimpleNamespace(running=lambda trial: None, finished=lambda *of: None, note=notes.append)
    there = tuple(FakeMachine(node_id=name, hardware=LAPTOP) for name in machines)
    sweep = Sweep(
        run=Run(run_id="r", experiment="e", name="n", plan_id="p", planned=6, started_at=""),
        cluster=Cluster(machines=there),
        data=None,
        how=How(seconds=1.0),
        write=lambda trial_id, rows: sweep.rows.extend(rows["trials"]),
        keep=lambda name, content: None,
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


A = FakeMachine(node_id="a", hardware=LAPTOP)


def test_each_trial_is_one_row_when_the_memory_monitor_ends_the_process():
    sweep = swept()
    told = sorted((row["batch_size"], row["repeat"], row["status"]) for row in sweep.rows)
    assert told == [(size, r, "out_of_memory" if size == HUNGRY else "ok") for size in (1, 2, 3) for r in (0, 1)]
    hungry = [trial for _, of_process in sweep.processes for trial in of_process if trial[0] == HUNGRY]
    assert len(hungry) == 3  # once in each repeat, once more alone before it was believed, and not again after that
    assert [hungry[-1]] in [of_process for _, of_process in sweep.processes]
    first = next(row for row in sweep.rows if row["status"] == "out_of_memory" and row["attempt"] == 2)
    assert "low on memory" in first["error_message"]


def test_rows_tell_the_command_that_measured_them():
    one, other = swept(), swept()
    assert one.started_at < other.started_at
    for sweep in (one, other):  # also of those that sent no record
        assert {row["command_started_at"] for row in sweep.rows} == {sweep.started_at}


class Killed(FakeLane):
    """The hungry trial's process is killed; by the kernel for want of memory, or by somebody else."""

    by_kernel = True
    account = None  # a file with what Ray says

    def run_one(self, trial, config, tunes, callback, alone):
        if trial.cell.batch_size != HUNGRY:
            return super().run_one(trial, config, tunes, callback, alone)
        FakeMachine.killed += self.by_kernel
        tunes.error_file = str(self.account)
        return callback.on_trial_error(0, [], tunes)


@pytest.mark.parametrize(("by_kernel", "status"), [(True, "out_of_memory"), (False, "killed")])
def test_what_the_kernel_killed_for_want_of_memory_is_told_from_other_kills(by_kernel, status, tmp_path, monkeypatch):
    (tmp_path / "account").write_text("The actor is dead because its worker process has died.")
    monkeypatch.setattr(Killed, "account", tmp_path / "account")
    monkeypatch.setattr(Killed, "by_kernel", by_kernel)
    monkeypatch.setattr(FakeMachine, "killed", 0)
    monkeypatch.setattr(FakeMachine, "is_lost", lambda self, within: False)
    sweep = swept(Killed, repeats=1)
    hungry = [row for row in sweep.rows if row["batch_size"] == HUNGRY]
    assert [row["status"] for row in hungry] == [status]
    assert hungry[0]["attempt"] == (2 if by_kernel else 1)  # out of memory is believed once it happened alone
    assert ("the kernel ended a process of the trial" in hungry[0]["error_message"]) == by_kernel
    assert sorted(row["status"] for row in sweep.rows if row["batch_size"] != HUNGRY) == ["ok", "ok"]


def test_another_failure_of_tune_is_not_taken_for_it():
    class Broken(FakeLane):
        def _tune(self, planned, callback, groups):
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        swept(Broken)


def test_several_machines_take_whole_repeats_and_each_process_of_the_plan_is_fresh():
    both = threading.Barrier(2, timeout=20)  # each machine is inside a trial at the same time as the other

    class Together(FakeLane):
        def run_one(self, trial, config, tunes, callback, alone):
            both.wait()
            super().run_one(trial, config, tunes, callback, alone)

    sweep = swept(Together, repeats=4, machines=("a", "b"), processes=2)
    assert sorted((row["batch_size"], row["repeat"]) for row in sweep.rows) == [
        (s, r) for s in (1, 2, 3) for r in range(4)
    ]
    machine_of = {repeat: {row["hostname"] for row in sweep.rows if row["repeat"] == repeat} for repeat in range(4)}
    assert all(len(machines) == 1 for machines in machine_of.values())
    assert sorted(min(machines) for machines in machine_of.values()) == ["a", "a", "b", "b"]
    assert sorted(name for name, _ in sweep.processes) == ["a", "a", "b", "b"]  # the plan's two processes on each


class Mortal(FakeLane):
    """Machine b dies in its second trial, before the other has ended its first."""

    died = threading.Event()

    def run_one(self, trial, config, tunes, callback, alone):
        if self.machine.node_id == "a":
            assert self.died.wait(timeout=20)
        elif not alone:
            self.died.set()
        if self.machine.node_id == "b" and not alone:
            FakeMachine.dead = frozenset("b")
            self._looked = 0.0
            callback.on_step_begin(1, [])
        super().run_one(trial, config, tunes, callback, alone)


def test_the_trials_of_a_machine_that_dies_are_measured_on_another(monkeypatch):
    monkeypatch.setattr(FakeMachine, "dead", frozenset())
    sweep = swept(Mortal, repeats=4, machines=("a", "b"))
    assert len(sweep.rows) == 12
    assert {row["status"] for row in sweep.rows} == {"ok"}
    assert len({row["trial_id"] for row in sweep.rows}) == 12
    assert sum(row["hostname"] == "b" for row in sweep.rows) == 1
    assert [row["attempt"] for row in sweep.rows].count(2) == 1  # the trial that b died with
    assert sweep.notes == ["laptop is lost: 2 of its trials go to another machine"]


def test_a_machine_that_dies_before_tune_asks_for_its_first_trial_loses_none(monkeypatch):
    monkeypatch.setattr(FakeMachine, "dead", frozenset())
    died = threading.Event()

    class AtTheDoor(FakeLane):
        def _tune(self, planned, callback, groups):
            if self.machine.node_id == "b":
                FakeMachine.dead = frozenset("b")
                self._looked = 0.0
                died.set()
                callback.on_step_begin(0, [])
            assert died.wait(timeout=20)
            super()._tune(planned, callback, groups)

    sweep = swept(AtTheDoor, repeats=4, machines=("a", "b"))
    assert len(sweep.rows) == len({row["trial_id"] for row in sweep.rows}) == 12
    assert {(row["status"], row["attempt"], row["hostname"]) for row in sweep.rows} == {("ok", 1, "a")}


def test_a_trial_that_waits_to_be_tried_alone_outlives_its_machine(monkeypatch):
    monkeypatch.setattr(FakeMachine, "dead", frozenset())
    died = threading.Event()

    class Hungry(FakeLane):
        """On machine b the second trial runs out of memory beside the first, and the machine dies in the third."""

        begun = 0

        def run_one(self, trial, config, tunes, callback, alone):
            if self.machine.node_id == "a":
                assert died.wait(timeout=20)
                return super().run_one(trial, config, tunes, callback, alone)
            self.begun += 1
            if self.begun == 2:
                record = {"measurement": {"status": "out_of_memory", "error_message": "no memory"}}
                outcome = {"record": record, "environment": {}, "when": {}, "alone": False}
                return callback.on_trial_result(0, [], tunes, {"outcome": [outcome]})
            if self.begun == 3:
                FakeMachine.dead = frozenset("b")
                self._looked = 0.0
                died.set()
                callback.on_step_begin(1, [])
            return super().run_one(trial, config, tunes, callback, alone)

    both = threading.Barrier(2, timeout=20)  # each has taken its repeat before either goes on
    taken = Hungry._take

    def take_together(self, process):
        found = taken(self, process)
        if not died.is_set():
            both.wait()
        return found

    monkeypatch.setattr(Hungry, "_take", take_together)
    sweep = swept(Hungry, repeats=2, machines=("a", "b"), processes=2)
    assert len(sweep.rows) == len({row["trial_id"] for row in sweep.rows}) == 6
    assert {row["status"] for row in sweep.rows} == {"ok"}
    assert sweep.notes == ["laptop is lost: 2 of its trials go to another machine"]


def test_trials_of_a_machine_that_dies_last_are_measured_by_one_that_had_ended(monkeypatch):
    monkeypatch.setattr(FakeMachine, "dead", frozenset())
    others_ended = threading.Event()

    class Last(FakeLane):
        def run(self):
            super().run()
            if self.machine.node_id == "a":
                others_ended.set()

        def run_one(self, trial, config, tunes, callback, alone):
            if self.machine.node_id == "b":
                assert others_ended.wait(timeout=20)
                FakeMachine.dead = frozenset("b")
                self._looked = 0.0
                callback.on_step_begin(1, [])
            super().run_one(trial, config, tunes, callback, alone)

    both = threading.Barrier(2, timeout=20)  # each has taken its repeat before either goes on
    taken = Last._take

    def take_together(self, process):
        found = taken(self, process)
        if found and not others_ended.is_set():
            both.wait()
        return found

    monkeypatch.setattr(Last, "_take", take_together)
    sweep = swept(Last, repeats=2, machines=("a", "b"), processes=2)
    assert sorted((row["batch_size"], row["repeat"], row["hostname"]) for row in sweep.rows) == [
        (size, repeat, "a") for size in (1, 2, 3) for repeat in (0, 1)
    ]


def test_whatever_becomes_of_a_trial_the_attempt_that_a_machine_died_with_counts(monkeypatch):
    monkeypatch.setattr(FakeMachine, "is_lost", lambda self, within: False)
    (trial, *_) = grid.plan(CELLS, repeats=1, processes=1, seed=4)
    agenda, attempts = Agenda([trial]), []
    agenda.lose(trial)
    sweep = SimpleNamespace(finish=lambda trial, found, attempt: attempts.append(attempt), how=How(seconds=1))
    lane = Lane(sweep, FakeMachine(node_id="a", hardware=LAPTOP), agenda)
    lane.died(trial, 1, "has died", 0.0, None, FakeMachine.killed)
    lane.evicted(trial, 2, "OutOfMemoryError", None)
    assert attempts == [2, 3]


def test_a_trial_that_two_machines_died_with_is_a_row():
    lost = grid.plan(CELLS, repeats=1, processes=1, seed=4)[0]
    agenda = Agenda([lost])
    sweep = SimpleNamespace(rows=[], finish=lambda trial, found, attempt: sweep.rows.append((trial, found, attempt)))
    for name in "ab":
        Lane(sweep, FakeMachine(node_id=name, hardware=LAPTOP), agenda)._lose(lost)
    ((trial, found, attempt),) = sweep.rows
    assert (trial, found.status, found.error_type, attempt) == (lost, "killed", "NodeDiedError", 2)


def test_when_no_machine_is_left_what_is_missing_is_told_and_left_to_the_same_command(monkeypatch):
    monkeypatch.setattr(FakeMachine, "dead", frozenset("a"))
    with pytest.raises(ClusterLostError, match=r"6 trials are not measured.*same command again"):
        swept(FakeLane)


def test_trials_of_several_workers_take_turns_with_the_others_in_one_process():
    told = []  # for each process: workers, repeat, and what the trial process is told

    class Noting(FakeLane):
        def _tune(self, planned, callback, groups):
            told.append([])
            super()._tune(planned, callback, groups)

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


def test_no_group_stays_up_for_what_is_known_to_be_too_large():
    rows = []
    lane = Lane(SimpleNamespace(finish=lambda trial, found: rows.append((trial, found.status))), A, Agenda([]))
    large = make_cell(num_workers=4)
    lane._too_large[large.cell_id] = "no memory"
    waiting = deque(plan_of([large], seed=1))
    assert not lane._any(waiting, lambda: False)
    assert rows == [(plan_of([large], seed=1)[0], "out_of_memory")]
    assert lane._any(deque(plan_of([make_cell(num_workers=2)], seed=1)), lambda: False)


def test_alone_a_trial_has_no_workers_beside_its_own():
    processes = []

    class Noting(FakeLane):
        def _tune(self, planned, callback, groups):
            processes.append([those.nodes for those in groups])
            super()._tune(planned, callback, groups)

        def run_one(self, trial, config, tunes, callback, alone):
            record = {"measurement": {"status": "out_of_memory", "error_message": "no memory"}}
            outcome = {"record": record, "environment": {}, "when": {}, "alone": len(processes) > 1}
            callback.on_trial_result(0, [], tunes, {"outcome": [outcome]})

    swept(Noting, repeats=1, cells=[make_cell(num_workers=n) for n in (1, 2, 4)])
    assert processes[0] == [("a",) * 4]
    assert sorted(processes[1:]) == [[], [("a", "a")], [("a",) * 4]]


def test_after_a_process_that_ended_what_it_has_left_is_given_back_before_the_next_trial(tmp_path, monkeypatch):
    (tmp_path / "account").write_text("The actor is dead because its worker process has died.")
    monkeypatch.setattr(Killed, "account", tmp_path / "account")
    monkeypatch.setattr(Killed, "by_kernel", False)
    monkeypatch.setattr(FakeMachine, "is_lost", lambda self, within: False)
    sweep = swept(Killed, repeats=2)
    assert len(sweep.rows) == 6
    assert all(HUNGRY not in [size for size, _ in of_process[:-1]] for _, of_process in sweep.processes)
    assert len(sweep.processes) == 3


def test_what_takes_more_machines_than_are_left_is_told_and_the_rest_goes_on(monkeypatch):
    monkeypatch.setattr(FakeMachine, "dead", frozenset("b"))
    cells = [make_cell(num_workers=2, num_nodes=2), make_cell(num_workers=2), make_cell()]
    sweep = swept(FakeLane, repeats=2, machines=("a", "b"), cells=cells)
    of_two = [row for row in sweep.rows if row["num_nodes"] == 2]
    assert {(row["status"], row["error_type"]) for row in of_two} == {("killed", "NodeDiedError")}
    assert of_two[0]["error_message"] == "not run: it takes 2 machines, and 1 of the cluster are left"
    assert [row["status"] for row in sweep.rows if row["num_nodes"] == 1] == ["ok"] * 4


def plan_of(cells, seed):
    return grid.plan(cells, repeats=1, processes=1, seed=seed)


def test_running_out_of_memory_is_believed_of_several_workers_too_once_it_happened_alone():
    class Starving(FakeLane):
        def run_one(self, trial, config, tunes, callback, alone):
            if trial.cell.batch_size != HUNGRY:
                return super().run_one(trial, config, tunes, callback, alone)
            record = {"measurement": {"status": "out_of_memory", "error_message": "no memory"}}
            outcome = {"record": record, "environment": {}, "when": {}, "alone": alone}
            return callback.on_trial_result(0, [], tunes, {"outcome": [outcome]})

    cells = [make_cell(batch_size=size, num_workers=2) for size in (1, HUNGRY, 3)]
    seed = next(seed for seed in range(9) if plan_of(cells, seed)[0].cell.batch_size != HUNGRY)
    sweep = swept(Starving, cells=cells, seed=seed)
    hungry = [trial for _, of_process in sweep.processes for trial in of_process if trial[0] == HUNGRY]
    assert len(hungry) == 3  # in each repeat, and the first once more, alone; what has waited for that is not tried
    told = sorted(row["attempt"] for row in sweep.rows if row["status"] == "out_of_memory")
    assert told == [1, 2]
    assert len(sweep.rows) == 6


@pytest.mark.parametrize(("killed", "status"), [(1, "out_of_memory"), (0, "killed")])
def test_a_worker_that_the_kernel_killed_for_want_of_memory_is_tried_again_alone(killed, status, monkeypatch):
    monkeypatch.setattr(FakeMachine, "killed", 0)

    class WorkerKilled(FakeLane):
        """The trial process tells that a worker was killed."""

        def run_one(self, trial, config, tunes, callback, alone):
            if trial.cell.batch_size != HUNGRY:
                return super().run_one(trial, config, tunes, callback, alone)
            FakeMachine.killed += killed
            record = {"measurement": {"status": "killed", "error_message": "a worker has died"}}
            outcome = {"record": record, "environment": {}, "when": {}, "alone": alone}
            return callback.on_trial_result(0, [], tunes, {"outcome": [outcome]})

    cells = [make_cell(batch_size=size, num_workers=2) for size in (1, HUNGRY, 3)]
    sweep = swept(WorkerKilled, repeats=1, cells=cells)
    (row,) = [row for row in sweep.rows if row["batch_size"] == HUNGRY]
    assert (row["status"], row["attempt"]) == (status, 2 if killed else 1)
    assert len(sweep.rows) == 3


def test_an_agenda_gives_whole_repeats_in_order_and_takes_back_what_a_machine_left():
    trials = grid.plan(CELLS, repeats=3, processes=3, seed=4)
    agenda = Agenda(trials)
    assert agenda.take() == trials[:3]
    assert agenda.take(0) == []  # the next repeat is the plan's second process
    assert agenda.left == 6
    agenda.put_back(trials[1:3])
    assert agenda.take() == trials[1:3]
    assert agenda.take(1) == trials[3:6]
    assert (agenda.lose(trials[0]), agenda.lose(trials[0])) == (True, False)
