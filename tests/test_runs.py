import contextlib
import importlib
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from rich.console import Console
from samples import A100, IMAGES, LAPTOP, make_cell
from stored import make_run

from rresnet.analysis import frames
from rresnet.cell import Trial
from rresnet.config import Settings
from rresnet.experiments import running
from rresnet.runner import machines
from rresnet.runner.sweep import rows_of
from rresnet.tables import environment, runs
from rresnet.tables.measurement import Environment, Measurement, Record, When
from rresnet.tables.place import StoreError
from rresnet.tables.store import Writer
from rresnet.terminal import short_hash


def test_an_unfinished_run_of_the_same_plan_is_continued(tmp_path):
    first = runs.open_run(tmp_path, make_run(), fresh=False)
    writer = Writer(tmp_path, first)
    writer.close()
    again = make_run(run_id="r2", started_at="2026-01-02T00:00:00+00:00")
    assert runs.open_run(tmp_path, again, fresh=False).run_id == "r1"
    assert runs.open_run(tmp_path, again, fresh=True).run_id == "r2"
    assert runs.open_run(tmp_path, make_run(run_id="r3", request_id="other"), fresh=False).run_id == "r3"
    assert runs.open_run(tmp_path, make_run(run_id="r4", name="other"), fresh=False).run_id == "r4"
    writer = Writer(tmp_path, first)
    writer.close()
    writer.finish("2026-01-01T01:00:00+00:00")
    assert runs.open_run(tmp_path, again, fresh=False).run_id == "r2"


def test_a_run_that_is_complete_is_continued_only_when_asked(tmp_path):
    writer = Writer(tmp_path, make_run())
    writer.close()
    writer.finish("2026-01-01T01:00:00+00:00")
    again = make_run(run_id="r2")
    assert runs.open_run(tmp_path, again, fresh=False).run_id == "r2"
    found = runs.open_run(tmp_path, again, fresh=False, again=True)
    assert found.run_id == "r1"
    Writer(tmp_path, found).close()
    assert runs.open_run(tmp_path, again, fresh=False).run_id == "r1"  # it is no longer complete


def test_another_environment_is_refused_by_name_unless_asked(tmp_path):
    before = {"torch": "2.11", "cores": "8"}
    Writer(tmp_path, make_run(request_id="q", environment=before)).close()
    now = make_run(run_id="r2", plan_id="other", request_id="q", environment={"torch": "2.15", "cores": "8"})
    refused = r"run r1 was begun in another environment \(torch was 2\.11, is 2\.15\).*--fresh"
    with pytest.raises(StoreError, match=refused):
        runs.open_run(tmp_path, now, fresh=False)
    assert runs.open_run(tmp_path, now, fresh=True).run_id == "r2"
    assert runs.open_run(tmp_path, now, fresh=False, mix=True).run_id == "r1"
    same = make_run(run_id="r2", request_id="q", environment=before)
    assert runs.open_run(tmp_path, same, fresh=False).run_id == "r1"


def test_a_run_whose_data_changed_is_not_continued_unasked(tmp_path):
    Writer(tmp_path, make_run(environment=environment.of_run(A100, "9f3a"))).close()
    with pytest.raises(StoreError, match=r"another environment \(images was 9f3a, is 11b0\)"):
        runs.open_run(tmp_path, make_run(environment=environment.of_run(A100, "11b0")), fresh=False)


def test_an_update_of_the_system_or_the_driver_is_another_environment(tmp_path, monkeypatch):
    Writer(tmp_path, make_run(environment=environment.of_run(A100, "data"))).close()
    assert runs.open_run(tmp_path, make_run(environment=environment.of_run(A100, "data")), fresh=False).run_id == "r1"
    updated = make_run(environment=environment.of_run(replace(A100, driver_version="580.2"), "data"))
    with pytest.raises(StoreError, match=r"\(driver was 570\.1, is 580\.2\)"):
        runs.open_run(tmp_path, updated, fresh=False)
    monkeypatch.setattr("platform.release", lambda: "7.0-1")
    with pytest.raises(StoreError, match=r"operating system was Linux .*, is Linux 7\.0-1\)"):
        runs.open_run(tmp_path, make_run(environment=environment.of_run(A100, "data")), fresh=False)


def test_other_variables_of_the_libraries_are_another_environment(tmp_path, monkeypatch):
    preloaded = replace(A100, variables="LD_PRELOAD=libtcmalloc.so")
    Writer(tmp_path, make_run(environment=environment.of_run(A100, "data"))).close()
    with pytest.raises(StoreError, match=r"set in the environment was none, is LD_PRELOAD=libtcmalloc\.so\)"):
        runs.open_run(tmp_path, make_run(environment=environment.of_run(preloaded, "data")), fresh=False)
    found = []
    for machine in (A100, preloaded):
        monkeypatch.setattr(environment, "probe", lambda hidden=False, machine=machine: machine)
        found.append(environment.describe.__wrapped__("cpu"))
    assert [one.variables for one in found] == ["none", "LD_PRELOAD=libtcmalloc.so"]
    assert found[0].environment_fingerprint != found[1].environment_fingerprint


def test_a_model_whose_code_was_changed_is_another_environment(tmp_path, monkeypatch):
    def begun(code, changed="mynets_a.py", model="mynets_a:small"):
        (tmp_path / changed).write_text(code)
        environment.model_code.cache_clear()
        importlib.invalidate_caches()
        return environment.of_run(A100, "data", models=[model, "resnet50", "not_there:small"])

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(environment, "describe", lambda device: Environment(environment_fingerprint="e"))
    Writer(tmp_path, make_run(environment=begun("a = 1"))).close()
    one = environment.of_trial(make_cell(model="mynets_a:small"))
    assert runs.open_run(tmp_path, make_run(environment=begun("a = 1")), fresh=False).run_id == "r1"
    with pytest.raises(StoreError, match=r"\(code of mynets_a:small was \w+, is \w+\)"):
        runs.open_run(tmp_path, make_run(environment=begun("a = 2")), fresh=False)
    other = environment.of_trial(make_cell(model="mynets_a:small"))
    assert one.model_code
    assert one.model_code != other.model_code
    assert one.environment_fingerprint != other.environment_fingerprint
    assert environment.of_trial(make_cell()) == environment.of_trial(make_cell(model="not_there:small"))
    assert environment.of_trial(make_cell()).environment_fingerprint == "e"
    (tmp_path / "mynets_b").mkdir()
    begun("from mynets_b.nets import small", "mynets_b/__init__.py")
    of_package = [begun(code, "mynets_b/nets.py", "mynets_b:small")["code of mynets_b:small"] for code in ("1", "2")]
    assert of_package[0] != of_package[1]
    assert "mynets_b" not in sys.modules


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"gcc": not A100.gcc}, r"compilers was .*, is .*"),
        ({"compiler": not A100.compiler}, r"compilers was .*, is .*"),
        ({"triton": not A100.triton}, r"compilers was .*, is .*"),
        ({"gpu_count": 8}, r"GPUs was 1, is 8"),
    ],
)
def test_what_a_plan_depends_on_is_part_of_the_environment(tmp_path, change, told):
    Writer(tmp_path, make_run(environment=environment.of_run(A100, "data"))).close()
    with pytest.raises(StoreError, match=rf"another environment \({told}\)"):
        runs.open_run(tmp_path, make_run(environment=environment.of_run(replace(A100, **change), "data")), fresh=False)


def test_a_run_that_a_fresh_one_has_superseded_does_not_come_back(tmp_path):
    def begun(run_id, day, commit, *, complete=False):
        run = make_run(run_id=run_id, environment={"commit": commit}, started_at=f"2026-01-0{day}")
        writer = Writer(tmp_path, run)
        writer.close()
        if complete:
            writer.finish(f"2026-01-0{day}")

    def opened(commit, **flags):
        now = make_run(run_id="new", environment={"commit": commit})
        return runs.open_run(tmp_path, now, fresh=False, **flags).run_id

    begun("r1", 1, "aaa")
    begun("r2", 2, "aaa", complete=True)
    assert (opened("aaa"), opened("aaa", again=True)) == ("new", "r2")
    begun("r3", 3, "bbb", complete=True)
    assert (opened("aaa"), opened("bbb"), opened("ccc")) == ("new", "new", "new")
    begun("r4", 4, "bbb")
    assert (opened("aaa"), opened("bbb")) == ("new", "r4")
    with pytest.raises(StoreError, match=r"run r4 .*commit was bbb, is ccc"):
        opened("ccc")
    begun("r5", 5, "aaa")
    begun("r6", 6, "bbb", complete=True)
    assert opened("aaa") == "r5"  # nothing of its own environment has superseded it


def test_a_local_run_is_not_continued_on_another_machine_of_the_same_kind(tmp_path):
    def begun(host, **how):
        return make_run(environment=environment.of_run(replace(A100, hostname=host), "data", **how))

    Writer(tmp_path, begun("a", local=True)).close()
    assert runs.open_run(tmp_path, begun("a", local=True), fresh=False).run_id == "r1"
    assert runs.open_run(tmp_path, begun("b"), fresh=False).run_id == "r1"  # of a cluster
    with pytest.raises(StoreError, match=r"another environment \(machine was a, is b\)"):
        runs.open_run(tmp_path, begun("b", local=True), fresh=False)


def test_a_complete_run_is_reused_where_it_is_of_this_environment(tmp_path):
    for run_id, commit in (("r1", "aaa"), ("r2", "bbb")):
        run = make_run(run_id=run_id, environment={"commit": commit}, started_at=f"2026-01-0{run_id[1]}")
        writer = Writer(tmp_path, run)
        writer.close()
        writer.finish("2026-01-03")

    def opened(commit, **flags):
        now = make_run(run_id="r3", environment={"commit": commit})
        return runs.open_run(tmp_path, now, fresh=False, **flags).run_id

    assert [opened(commit, reuse=True) for commit in ("aaa", "bbb", "ccc")] == ["r1", "r2", "r3"]
    assert opened("ccc", reuse=True, mix=True) == "r2"
    with pytest.raises(StoreError, match="commit was bbb, is ccc"):  # --retry: that very run was asked for
        opened("ccc", reuse=True, again=True)
    Writer(tmp_path, make_run(run_id="r0", environment={"commit": "bbb"}, started_at="2026-01-04")).close()
    with pytest.raises(StoreError, match=r"run r0 .*commit was bbb, is ccc"):  # one that is not complete
        opened("ccc", reuse=True)


def test_a_commit_whose_code_was_changed_is_another(tmp_path, monkeypatch):
    def git(*of):
        author = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", *author, *of], cwd=tmp_path, check=True, capture_output=True)

    def told(code):
        (tmp_path / "rresnet" / "cell.py").write_text(code)
        return environment.git_commit.__wrapped__()

    (tmp_path / "rresnet" / "tables").mkdir(parents=True)
    (tmp_path / "experiments").mkdir()
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "rresnet" / "tables" / "environment.py"))
    assert told("a") is None
    git("init")
    assert told("a") is None
    git("add", ".")
    git("commit", "-m", "one")
    commit, changed, again = told("a"), told("b"), told("c")
    assert re.fullmatch("[0-9a-f]{40}", commit)
    assert re.fullmatch(f"{commit}-dirty-[0-9a-f]{{8}}", changed)
    assert changed != again
    assert told("a") == commit
    (tmp_path / "rresnet" / "mine.py").write_text("new")
    assert told("a").startswith(f"{commit}-dirty-")
    (tmp_path / "rresnet" / "mine.py").unlink()
    (tmp_path / "rresnet" / "cell.py").unlink()
    assert environment.git_commit.__wrapped__().startswith(f"{commit}-dirty-")
    for unmeasured in ("rresnet/reporting/page.py", "README.md"):
        (tmp_path / unmeasured).parent.mkdir(exist_ok=True)
        (tmp_path / unmeasured).write_text("new")
    assert told("a") == commit
    (tmp_path / ".git" / "index").write_bytes(b"damaged")
    assert told("a") == f"{commit}-dirty-unknown"  # so that it does not pass for the commit's
    assert short_hash(changed) == f"{commit[:10]}-dirty-{changed[-8:]}"
    assert short_hash("Linux 6.8.0-45-generic") == "Linux 6.8.0-45-generic"


def test_code_that_is_known_on_one_side_alone_is_other_code(tmp_path, monkeypatch):
    for number, (before, now) in enumerate([("abc", None), (None, "abc")]):
        for commit, run_id in ((before, "r1"), (now, "r2")):
            monkeypatch.setattr(environment, "git_commit", lambda commit=commit: commit)
            monkeypatch.setattr(environment, "model_code", lambda model, commit=commit: commit)
            run = make_run(run_id=run_id, environment=environment.of_run(A100, "data", models=["nets:f"]))
            if run_id == "r1":
                Writer(tmp_path / str(number), run).close()
        of = f"was {before or 'not known'}, is {now or 'not known'}"
        with pytest.raises(StoreError, match=f"code of nets:f {of}; rresnet's commit {of}"):
            runs.open_run(tmp_path / str(number), run, fresh=False)


def test_what_is_no_longer_recorded_makes_no_other_environment(tmp_path):
    Writer(tmp_path, make_run(environment={"torch": "2.15", "phase of the moon": "full"})).close()
    assert runs.open_run(tmp_path, make_run(run_id="r2", environment={"torch": "2.15"}), fresh=False).run_id == "r1"


def test_runs_are_in_the_order_of_their_start(tmp_path):
    for run_id, day in (("b", 2), ("a", 3), ("c", 1)):
        with Writer(tmp_path, make_run(run_id=run_id, started_at=f"2026-01-0{day}T00:00:00+00:00")):
            pass
    assert [run.run_id for run in runs.read_runs(tmp_path)] == ["c", "b", "a"]


def test_manifests_tell_the_runs_and_damaged_ones_are_passed_over(tmp_path):
    Writer(tmp_path, runs.open_run(tmp_path, make_run(), fresh=False)).close()
    (tmp_path / "runs" / "broken.json").write_text("{")
    (tmp_path / "runs" / "other.json").write_text(json.dumps({"unknown": 1}))
    assert [run.run_id for run in runs.read_runs(tmp_path)] == ["r1"]


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A run of two settings in two repeats: measures with `retry`, and is stopped after so many trials.

    `given` has how many trials each call was to run, `told` what a dry run says, and `flags` are those of each row.
    """
    settings = Settings(model="resnet18", recipe=("blog",), batch_size=(8, 16), repeats=2, results_dir=str(tmp_path))
    there = (SimpleNamespace(hardware=LAPTOP),)
    monkeypatch.setattr(machines, "busy", lambda those: None)
    console = Console(file=io.StringIO(), width=200)
    setup = running.Setup(machines=there, images=IMAGES, console=console, stop_asked=lambda: False)

    class Interrupted:
        def __init__(self, settings, setup, writer, progress, attempts, trainable):
            self.writer, self.attempts, self.started_at = writer, attempts, datetime.now(UTC)

        def execute(self, trials):
            given.append(len(trials))
            for trial in trials[: self.ends_after]:
                attempt, ok = 1 + self.attempts.get(trial.trial_id, 0), Measurement(status="ok", quality_flags=flags)
                record = Record(measurement=ok, when=When(started_at=measured.now))
                rows = rows_of(self.writer.run, trial, record, attempt=attempt, command_started_at=self.started_at)
                self.writer.write(trial.trial_id, rows)
            if len(trials) > self.ends_after:
                raise KeyboardInterrupt

    monkeypatch.setattr(running, "_sweep", Interrupted)
    given, told, flags = [], [], []

    def measured(retry, ends_after):
        asked, Interrupted.ends_after = replace(settings, retry=retry), ends_after
        run, done = running.continued("compare", asked)
        told.extend([len(done)] if run else [])
        with contextlib.suppress(KeyboardInterrupt):
            running.measured(running.Experiment(name="compare"), asked, setup, extend=None)
        return frames.trials_of(str(tmp_path), runs.read_runs(tmp_path)[-1].run_id)

    measured.now = datetime.now(UTC)
    return SimpleNamespace(measured=measured, given=given, told=told, flags=flags, console=console, settings=settings)


def test_measuring_all_again_goes_on_where_it_was_interrupted(tmp_path, interrupted):
    for retry, ends_after in (("failed", 4), ("all", 1), ("all", 2), ("all", 4), ("all", 4)):
        trials = interrupted.measured(retry, ends_after)
    assert interrupted.given == [4, 4, 3, 1, 4]  # the last one begins again, for the one before it was complete
    assert interrupted.told == [0, 1, 3, 0]
    assert running.continued("compare", interrupted.settings) == (None, set())  # it is complete
    assert trials["attempt"].tolist() == [3, 3, 3, 3]
    shown = interrupted.console.file.getvalue()
    assert shown.count(f"No run of the same flags is in {tmp_path} yet, so this is a new one") == 1


def test_of_a_complete_run_that_is_used_again_nothing_is_run_unless_that_is_asked_for(tmp_path):
    run = make_run()
    with Writer(tmp_path, run) as writer:
        for repeat, status in enumerate(("ok", "killed")):
            trial = Trial(cell=make_cell(), repeat=repeat, process=0)
            writer.write(trial.trial_id, rows_of(run, trial, Record(measurement=Measurement(status=status)), attempt=1))
    writer.finish("2026-01-01T01:00:00+00:00")
    (complete,) = runs.read_runs(tmp_path)
    for one, retry, done in ((run, None, 1), (complete, None, 2), (complete, "failed", 1)):
        attempts, ended = running._ended(Settings(results_dir=str(tmp_path), retry=retry), one)
        assert (len(attempts), len(ended)) == (2, done)


def test_what_other_work_disturbed_is_measured_again_in_whole_repeats(interrupted):
    measured, given, flags = interrupted.measured, interrupted.given, interrupted.flags
    measured(None, 2)  # the first repeat, undisturbed
    flags[:] = ["few_windows", "steal"]
    measured(None, 4)
    flags[:] = ["few_windows"]
    measured("failed", 4)  # nothing
    measured.now += timedelta(minutes=11)
    measured("disturbed", 1)  # half of the second repeat: what is left of it is disturbed
    measured("disturbed", 4)
    trials = measured("disturbed", 4)  # nothing: none is disturbed
    assert given == [4, 2, 0, 2, 2, 0]
    assert sorted(zip(trials["repeat"], trials["attempt"], strict=True)) == [(0, 1), (0, 1), (1, 2), (1, 3)]
    assert interrupted.told == [2, 4, 2, 2, 4]
