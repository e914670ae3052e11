"""The driver's side, without Ray: the order of trials, and what becomes of those whose process ends."""

import threading
from types import SimpleNamespace

import pytest
import ray
from lanes import CELLS, HUNGRY, FakeLane, FakeMachine, swept
from samples import make_cell

from rresnet import grid
from rresnet.cell import Trial
from rresnet.runner import events
from rresnet.runner.agenda import Agenda
from rresnet.runner.sweep import rows_of
from rresnet.tables.measurement import Environment, Epoch, Measurement, Record, Window
from rresnet.tables.runs import Run


class Evicting(FakeLane):
    """Its process is ended when the hungry trial runs."""

    def run_one(self, trial, config, tunes, callback, alone):
        if trial.cell.batch_size == HUNGRY:
            raise RuntimeError("Tune gives up") from ray.exceptions.OutOfMemoryError("the node runs low on memory")
        super().run_one(trial, config, tunes, callback, alone)


def test_each_trial_is_one_row_when_the_memory_monitor_ends_the_process():
    sweep = swept(Evicting)
    told = sorted((row["batch_size"], row["repeat"], row["status"]) for row in sweep.rows)
    assert told == [(size, r, "out_of_memory" if size == HUNGRY else "ok") for size in (1, 2, 3) for r in (0, 1)]
    hungry = [trial for _, of_process in sweep.processes for trial in of_process if trial[0] == HUNGRY]
    assert len(hungry) == 3  # once in each repeat, once more alone before it was believed, and not again after that
    assert [hungry[-1]] in [of_process for _, of_process in sweep.processes]
    first = next(row for row in sweep.rows if row["status"] == "out_of_memory" and row["attempt"] == 2)
    assert "low on memory" in first["error_message"]
    (other,) = (row for row in sweep.rows if row["status"] == "out_of_memory" and row is not first)
    assert other["error_message"].startswith("it ran out of memory beside other hot cells, and was not run again: the")


def test_rows_tell_the_command_that_measured_them():
    one, other = swept(Evicting), swept(Evicting)
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


class Stillborn(FakeLane):
    """Its first process ends while it starts, before a trial has begun in it."""

    account = None  # a file with what Ray says

    def _tune(self, handout, callback, groups):
        if self.sweep.processes:
            return super()._tune(handout, callback, groups)
        self.sweep.processes.append((self.machine.node_id, []))
        callback.on_trial_error(0, [], SimpleNamespace(planned=handout.take(), error_file=str(self.account)))
        return callback.on_step_begin(1, [])


def test_a_process_that_ends_while_it_starts_takes_one_trial_with_it(tmp_path, monkeypatch):
    (tmp_path / "account").write_text("The actor died unexpectedly before finishing this task.")
    monkeypatch.setattr(Stillborn, "account", tmp_path / "account")
    monkeypatch.setattr(FakeMachine, "is_lost", lambda self, within: False)
    monkeypatch.setattr(FakeMachine, "killed", 2)  # by the kernel, before the run
    sweep = swept(Stillborn, repeats=1)
    assert [(row["status"], row["attempt"]) for row in sweep.rows] == [("killed", 1), ("ok", 1), ("ok", 1)]


def test_after_a_process_that_ended_what_it_has_left_is_given_back_before_the_next_trial(tmp_path, monkeypatch):
    (tmp_path / "account").write_text("The actor is dead because its worker process has died.")
    monkeypatch.setattr(Killed, "account", tmp_path / "account")
    monkeypatch.setattr(Killed, "by_kernel", False)
    monkeypatch.setattr(FakeMachine, "is_lost", lambda self, within: False)
    sweep = swept(Killed, repeats=2)
    assert len(sweep.rows) == 6
    assert all(HUNGRY not in [size for size, _ in of_process[:-1]] for _, of_process in sweep.processes)
    assert len(sweep.processes) == 3


@pytest.mark.parametrize(("reports", "seconds"), [(False, 600), (True, 1200)])
def test_a_process_that_gives_no_sign_of_life_is_ended_and_its_trial_told(reports, seconds, tmp_path, monkeypatch):
    (tmp_path / "account").write_text("The actor is dead because it was killed by `ray.kill`.")
    clock, killed = [0.0], []
    monkeypatch.setattr(events, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(ray, "kill", killed.append)

    class Hangs(FakeLane):
        """The hungry trial hangs before its process reports, or is stopped after it."""

        def run_one(self, trial, config, tunes, callback, alone):
            if trial.cell.batch_size != HUNGRY:
                return super().run_one(trial, config, tunes, callback, alone)
            if reports:
                callback.on_trial_result(0, [], tunes, {"process_id": 1})
            for _ in range(3):
                assert killed == []
                clock[0] += seconds / 2 - 1
                callback.on_step_begin(0, [])
            tunes.error_file = str(tmp_path / "account")
            return callback.on_trial_error(0, [], tunes)

    sweep = swept(Hangs, repeats=1)
    assert killed == ["actor"]  # once
    row = next(row for row in sweep.rows if row["batch_size"] == HUNGRY)
    told = f"the trial process gave no sign of life for {seconds} s and was ended"
    assert (row["status"], row["error_type"], row["error_message"]) == ("timeout", "TimeoutError", told)
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


def test_rows_join_on_the_trial():
    planned = Trial(cell=make_cell(num_workers=2), repeat=3, process=1)
    run = Run(run_id="r", experiment="compare", name="n", plan_id="p", planned=1, started_at="")
    record = Record(
        measurement=Measurement(status="ok"),
        windows=(Window(window=0, kind="measured", started_seconds=0.0, seconds=0.5, steps=2, images=16),),
        epochs=(Epoch(epoch=0, seconds=0.5, images=16, train_loss=2.0),),
        environment=Environment(hostname="h"),
    )
    rows = rows_of(run, planned, record, attempt=2)
    row = rows["trials"][0]
    assert (row["trial_id"], row["repeat"], row["process"], row["attempt"]) == (planned.trial_id, 3, 1, 2)
    assert (row["global_batch_size"], row["hostname"], row["started_at"]) == (16, "h", None)
    assert rows["windows"] == [{"run_id": "r", "trial_id": planned.trial_id, **vars(record.windows[0])}]
    assert rows["epochs"] == [{"run_id": "r", "trial_id": planned.trial_id, **vars(record.epochs[0])}]
    assert rows["losses"] == []


def test_a_trial_that_is_measured_twice_in_a_command_tells_so():
    sweep = swept(FakeLane)
    sweep.execute([Trial(cell=CELLS[0], repeat=0, process=0)])
    assert [row["attempt"] for row in sweep.rows if row["trial_id"] == sweep.rows[-1]["trial_id"]] == [1, 2]
