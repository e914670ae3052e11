"""The driver's side, without Ray: what becomes of the trials of a machine that is lost."""

import threading
from types import SimpleNamespace

import pytest
from lanes import CELLS, FakeLane, FakeMachine, plan_of, swept
from samples import LAPTOP, make_cell

from rresnet.config import How
from rresnet.runner.agenda import Agenda
from rresnet.runner.cluster import ClusterLostError
from rresnet.runner.events import TrialProcess
from rresnet.runner.lane import Lane
from rresnet.tables.measurement import Measurement, Record


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
        def _tune(self, handout, callback, groups):
            if self.machine.node_id == "b":
                FakeMachine.dead = frozenset("b")
                self._looked = 0.0
                died.set()
                callback.on_step_begin(0, [])
            assert died.wait(timeout=20)
            super()._tune(handout, callback, groups)

    sweep = swept(AtTheDoor, repeats=4, machines=("a", "b"))
    assert len(sweep.rows) == len({row["trial_id"] for row in sweep.rows}) == 12
    assert {(row["status"], row["attempt"], row["hostname"]) for row in sweep.rows} == {("ok", 1, "a")}


def test_a_trial_whose_process_starts_on_a_machine_that_dies_goes_on_once(tmp_path, monkeypatch):
    (tmp_path / "account").write_text("The actor died unexpectedly before finishing this task.")
    monkeypatch.setattr(FakeMachine, "dead", frozenset())
    monkeypatch.setattr(FakeMachine, "is_lost", lambda self, within: not self.alive())
    died = threading.Event()

    class Starting(FakeLane):
        def _tune(self, handout, callback, groups):
            if self.machine.node_id == "b":
                trial = SimpleNamespace(planned=handout.take(), error_file=str(tmp_path / "account"))
                FakeMachine.dead = frozenset("b")
                self._looked = 0.0
                died.set()
                callback.on_trial_error(0, [], trial)
                callback.on_step_begin(1, [])
            assert died.wait(timeout=20)
            super()._tune(handout, callback, groups)

    sweep = swept(Starting, repeats=4, machines=("a", "b"))
    assert len(sweep.rows) == len({row["trial_id"] for row in sweep.rows}) == 12
    assert sorted(row["attempt"] for row in sweep.rows) == [*[1] * 11, 2]


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
                return self.tell(tunes, callback, alone=False, status="out_of_memory", error_message="no memory")
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
    (trial, *_) = plan_of(CELLS, seed=4)
    agenda, attempts = Agenda([trial]), []
    agenda.lose(trial)
    sweep = SimpleNamespace(record=lambda trial, record, attempt: attempts.append(attempt), how=How(seconds=1))
    lane = Lane(sweep, FakeMachine(node_id="a", hardware=LAPTOP), agenda)
    lane.ended(TrialProcess(lane, attempt=1), trial, Record(measurement=Measurement(status="killed")), alone=False)
    starved = Record(measurement=Measurement(status="out_of_memory"))
    lane.ended(TrialProcess(lane, attempt=2), trial, starved, alone=True)
    assert attempts == [2, 3]


def test_a_trial_that_two_machines_died_with_is_a_row():
    lost = plan_of(CELLS, seed=4)[0]
    agenda = Agenda([lost])
    sweep = SimpleNamespace(rows=[], record=lambda *of, attempt: sweep.rows.append((*of, attempt)))
    for name in "ab":
        Lane(sweep, FakeMachine(node_id=name, hardware=LAPTOP), agenda)._lose(lost)
    ((trial, record, attempt),) = sweep.rows
    found = record.measurement
    assert (trial, found.status, found.error_type, attempt) == (lost, "killed", "NodeDiedError", 2)


def test_when_no_machine_is_left_what_is_missing_is_told_and_left_to_the_same_command(monkeypatch):
    monkeypatch.setattr(FakeMachine, "dead", frozenset("a"))
    with pytest.raises(ClusterLostError, match=r"6 trials are not measured.*same command again"):
        swept(FakeLane)


def test_where_the_first_machine_of_several_is_lost_the_next_one_goes_on(monkeypatch):
    monkeypatch.setattr(FakeMachine, "dead", frozenset())

    class Dies(FakeLane):
        ran = 0

        def run_one(self, trial, config, tunes, callback, alone):
            Dies.ran += 1
            if self.machine.node_id == "a" and Dies.ran == 3:
                FakeMachine.dead = frozenset("a")
                self._looked = 0.0
                callback.on_step_begin(1, [])
            super().run_one(trial, config, tunes, callback, alone)

    cells = [make_cell(num_workers=2, num_nodes=2), make_cell()]
    sweep = swept(Dies, repeats=2, machines=("a", "b", "c"), cells=cells)
    assert sorted((row["num_nodes"], row["repeat"], row["status"]) for row in sweep.rows) == [
        (nodes, repeat, "ok") for nodes in (1, 2) for repeat in (0, 1)
    ]


def test_what_takes_more_machines_than_are_left_is_told_and_the_rest_goes_on(monkeypatch):
    monkeypatch.setattr(FakeMachine, "dead", frozenset("b"))
    cells = [make_cell(num_workers=2, num_nodes=2), make_cell(num_workers=2), make_cell()]
    sweep = swept(FakeLane, repeats=2, machines=("a", "b"), cells=cells)
    of_two = [row for row in sweep.rows if row["num_nodes"] == 2]
    assert {(row["status"], row["error_type"]) for row in of_two} == {("killed", "NodeDiedError")}
    assert of_two[0]["error_message"] == "not run: it needs 2 machines, and the cluster has 1 left"
    assert [row["status"] for row in sweep.rows if row["num_nodes"] == 1] == ["ok"] * 4
