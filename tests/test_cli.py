import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from rresnet import cli, command, usage
from rresnet.config import Settings
from rresnet.experiments import ladder

ROOT = Path(__file__).parents[1]


def compare(*flags, **options):
    command = [sys.executable, str(ROOT / "experiments" / "compare.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--address", "127.0.0.1:1"], "no Ray cluster answers at --address 127.0.0.1:1"),
        (["--dataset", "fashion-mnist-12"], "did you mean fashion-mnist-12k?"),
    ],
)
def test_a_wrong_request_exits_with_2_and_one_message(tmp_path, flags, message):
    done = compare(*flags, "--results-dir", str(tmp_path / "out"))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_flags_that_do_nothing_are_told(tmp_path):
    done = compare("--epochs", "2", "--seconds", "5", "--data-dir", "d", "--dry-run", "--results-dir", str(tmp_path))
    assert done.returncode == 0
    assert done.stdout.splitlines()[:2] == [
        "--seconds is not used: --epochs trains whole epochs",
        "--data-dir is not used: no files of --dataset fashion-mnist-12k lie there",
    ]
    done = compare(
        "--seconds", "5", "--dataset", "cifar10", "--data-dir", "d", "--dry-run", "--results-dir", str(tmp_path)
    )
    assert done.stdout.startswith("Would run")


class Gone:
    """A stream that takes nothing."""

    encoding, isatty = "utf-8", lambda self: False

    def __init__(self, error):
        self.error = error

    def write(self, text):
        raise self.error

    def flush(self):
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_output_that_nobody_reads_or_takes_stops_the_run_as_ctrl_c_does(dry, error, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["experiments/compare.py", "--fresh", "--repeats", "3", *dry])
    monkeypatch.setattr(cli.signal, "signal", lambda *args: None)
    monkeypatch.setattr(cli.experiment, "run", lambda what, settings, console, asked: console.print("a row"))
    monkeypatch.setattr(sys, "stdout", Gone(error))
    monkeypatch.setattr(cli.usage, "_discard", lambda: None)
    assert cli.main("compare", "the experiment") == (2 if error.errno == 28 else 130)
    said = " ".join(capsys.readouterr().err.split())
    assert ("Stopped; every trial that ended is kept." in said) == (not dry)
    assert dry or said.endswith("experiments/compare.py --repeats 3")
    assert said.startswith("error: can't print (No space left on device): make space") == (error.errno == 28)


def test_a_run_goes_on_whose_terminal_has_gone(monkeypatch):
    shown = []

    def run(what, settings, console, asked):
        for row in ("one", "two"):
            console.print(row)
            shown.append(row)
        return False

    gone = Gone(OSError(5, "Input/output error"))  # as that of a job which its shell has disowned
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, gone)
    monkeypatch.setattr(sys, "argv", ["experiments/compare.py"])
    monkeypatch.setattr(cli.signal, "signal", lambda *args: None)
    monkeypatch.setattr(cli.experiment, "run", run)
    monkeypatch.setattr(cli.usage, "_discard", lambda: None)
    assert cli.main("compare", "the experiment") == 1
    assert shown == ["one", "two"]


@pytest.mark.parametrize(
    ("signal", "code", "said"), [(None, 1, ""), (2, 130, "the run is complete: rresnet report"), (15, 143, "complete")]
)
def test_who_stops_when_every_trial_has_run_is_told_that_nothing_is_left_to_do(signal, code, said, monkeypatch, capsys):
    def run(what, settings, console, asked):
        asked.__self__.signal = signal
        raise cli.experiment.StoppedAfterAll(False, settings.results_dir)

    monkeypatch.setattr(sys, "argv", ["experiments/compare.py"])
    monkeypatch.setattr(cli.signal, "signal", lambda *args: None)
    monkeypatch.setattr(cli.experiment, "run", run)
    assert cli.main("compare", "the experiment") == code
    told = capsys.readouterr().err
    assert said in told
    assert "To continue" not in told


def test_more_signals_do_not_break_off_what_the_first_set_going(monkeypatch):
    monkeypatch.setattr(cli.signal, "signal", lambda *args: None)
    stop, raised = cli._Stop(), []
    for second in (1.0, 1.1, 1.2, 9.0, 11.5):
        monkeypatch.setattr(cli.time, "monotonic", lambda second=second: second)
        try:
            stop._handle(2, None)
        except KeyboardInterrupt:
            raised.append(second)
    assert raised == [1.0, 11.5]
    assert stop.asked()


def test_where_it_is_asked_for_a_signal_raises_nothing_until_nobody_asks_any_more(monkeypatch):
    now, alarms = 100.0, []
    monkeypatch.setattr(cli.signal, "signal", lambda *args: None)
    monkeypatch.setattr(cli.signal, "setitimer", lambda which, seconds: alarms.append(seconds))
    monkeypatch.setattr(cli.time, "monotonic", lambda: now)
    answered, unanswered = cli._Stop(), cli._Stop()
    assert not answered.asked()
    assert not unanswered.asked()
    assert not alarms
    now = 101.9
    for stop in (answered, unanswered):
        stop._handle(signal.SIGTERM, None)
    assert alarms == [2.0, 2.0]  # should nobody ask
    assert answered.asked()  # whoever asked raises
    assert alarms.pop() == 0
    now = 103.9
    answered._handle(signal.SIGTERM, None)  # the same again, soon after it was asked for: it is being stopped
    now = 106.0
    answered._handle(signal.SIGALRM, None)
    with pytest.raises(KeyboardInterrupt):
        unanswered._handle(signal.SIGALRM, None)
    assert unanswered.signal == signal.SIGTERM


def test_a_working_folder_that_is_gone_is_told(monkeypatch, capsys):
    monkeypatch.setattr(cli.os, "getcwd", lambda: os.stat("/nothing"))
    monkeypatch.setattr(cli.signal, "signal", lambda *args: None)
    assert cli.main("compare", "the experiment") == 2
    assert "the working folder is gone (No such file or directory)" in " ".join(capsys.readouterr().err.split())


def test_no_width_is_any_width(tmp_path):
    dry = ("--dry-run", "--repeats", "1", "--results-dir", str(tmp_path))
    assert "Would run" in compare(*dry, env={**os.environ, "COLUMNS": "0"}).stdout


def test_python_m_rresnet_is_the_command():
    done = subprocess.run([sys.executable, "-m", "rresnet", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split()[0]) == (0, "rresnet")


def test_scaling_takes_batch_sizes_that_are_given():
    line = [sys.executable, str(ROOT / "experiments" / "scaling.py"), "--batch-size", "auto", "--dry-run"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "--batch-size" in done.stderr


def test_a_gpu_that_is_not_there_says_what_to_do(tmp_path):
    from rresnet import hardware

    if hardware.probe().gpu_count:
        pytest.skip("there is a GPU")
    done = compare("--device", "gpu", "--results-dir", str(tmp_path))
    assert done.returncode == 2
    assert "no GPU on this machine" in done.stderr
    assert "drop --device gpu, or join a Ray cluster that has one with --address" in done.stderr


def test_dry_run_prints_the_plan_and_runs_nothing(tmp_path):
    done = compare("--dry-run", "--repeats", "2", "--results-dir", str(tmp_path / "out"))
    assert done.returncode == 0
    assert "Would run 12 trials: 6 settings x 2 repeats, 2 processes" in done.stdout
    assert done.stdout.count("  tuned  ") == done.stdout.count("  blog  ") == 3, done.stdout  # one line per setting
    assert "Predicted duration: not known until" in done.stdout
    assert not (tmp_path / "out").exists()


def test_a_dry_run_tells_all_settings_apart():
    for given in (["ladder.py"], ["compare.py", "--aa", "--batch-size", "8"]):
        line = [sys.executable, str(ROOT / "experiments" / given[0]), *given[1:], "--dry-run", "--device", "cpu"]
        told = subprocess.run(line, capture_output=True, text=True, timeout=120, check=True).stdout
        rows = [row for row in told.splitlines() if row.startswith(("  blog", "  tuned"))]
        count = int(re.search(r"(\d+) settings x", told)[1])
        assert len(set(rows)) == count > 2, told
        if given == ["ladder.py"]:  # rung after rung, each with one change besides the recipe's name
            words = [row.split()[1:] for row in rows]
            assert [sum(map(str.__ne__, one, next_one)) for one, next_one in pairwise(words)] == [1] * (count - 1), told


def test_a_dry_run_of_batches_to_be_found_says_what_its_first_probes_lead_to(tmp_path):
    done = compare("--dry-run", "--batch-size", "auto", "--repeats", "5", "--results-dir", str(tmp_path / "out"))
    assert done.returncode == 0
    assert "Would run 2 trials: 2 settings x 1 repeat" in done.stdout  # one of each recipe
    told = " ".join(done.stdout.split())
    assert "These are the first probes of --batch-size auto" in told
    assert "the fastest and the largest size that fit are then measured in 5 repeats" in told


def test_a_dry_run_refuses_batches_that_the_run_would_or_says_that_they_are_not_checked(tmp_path):
    where = ["--dry-run", "--batch-size", "20000", "--repeats", "1", "--results-dir", str(tmp_path / "out")]
    done = compare(*where)
    assert done.returncode == 2
    assert (
        "20000 images per step and worker are more than the 10000 training images of fashion-mnist-12k" in done.stderr
    )
    assert "Would run" not in done.stdout
    done = compare(*where[:2], "60000", *where[3:], "--dataset", "synthetic")
    assert done.returncode == 2
    assert "more than the 50000 training images of synthetic" in done.stderr
    done = compare(*where, "--dataset", "cifar10")
    assert done.returncode == 0
    assert "Not checked: whether cifar10 can be read, and has enough images for each batch." in done.stdout


EXPERIMENTS = ["compare", "ladder", "blog", "scaling"]
GROUPS = ["setting options", "measuring options", "results options", "cluster options", "run options"]


def helped(arguments, monkeypatch, capsys):
    """What `--help` of an experiment or of a command prints on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.argv", [*arguments, "--help"])
    monkeypatch.setattr("sys.path", [*sys.path])
    path = ROOT / "experiments" / f"{arguments[0]}.py"
    start = command.main if arguments[0] == "rresnet" else lambda: runpy.run_path(str(path), run_name="__main__")
    with pytest.raises(SystemExit) as stopped:
        start()
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_help_of_an_experiment_has_examples_defaults_and_groups_and_fits(name, monkeypatch, capsys):
    text = helped([name], monkeypatch, capsys)
    assert max(map(len, text.splitlines())) <= 80
    assert f"python experiments/{name}.py --" in text
    assert [title for title in GROUPS if title in text] == GROUPS
    assert "--batch-size INT ..." in text
    assert "(default: 64)" in text or "(default: 32 64 128)" in text
    assert "None" not in text
    assert "(default: )" not in text


@pytest.mark.parametrize("name", ["doctor", "report", "diff", "export"])
def test_help_of_a_command_has_examples_and_fits(name, monkeypatch, capsys):
    text = helped(["rresnet", name], monkeypatch, capsys)
    assert max(map(len, text.splitlines())) <= 90  # tyro does not break the line of usage
    assert max(map(len, text.splitlines()[1:])) <= 80
    assert f"    rresnet {name}" in text
    assert "None" not in text
    assert "(default: )" not in text


def test_the_flags_are_those_of_the_contract(monkeypatch, capsys):
    text = helped(["compare"], monkeypatch, capsys)
    contract = (
        "--device --batch-size --recipe --precision --num-workers --cpu-threads --model --image-size --dataset "
        "--data-dir --repeats --processes --seconds --epochs --seed --results-dir --name --address --timeout-seconds "
        "--fresh --dry-run"
    )
    shown = re.findall(r"^\W*(--[a-z][a-z-]+)", text, re.MULTILINE)
    assert set(contract.split()) <= set(shown)


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["rresnet", "re"], ["report"]),
        (["rresnet", "export", "results", "--format", "m"], ["mlflow"]),
        (["compare.py", "--rec"], ["--recipe"]),
        (["compare.py", "--recipe", "t"], ["tuned"]),
    ],
)
def test_bash_completes(words, found, tmp_path):
    program = words[0]
    code = "import sys; from rresnet.command import main; sys.exit(main())"
    command = ["-c", code] if program == "rresnet" else [str(ROOT / "experiments" / program)]
    script = tmp_path / "completion.sh"
    done = subprocess.run(
        [sys.executable, *command, "--tyro-print-completion", "bash"], capture_output=True, text=True, check=True
    )
    script.write_text(done.stdout)
    ask = f"""
    source {script}
    [[ $(complete -p {program}) =~ (_tyro[a-z_]+) ]]
    COMP_WORDS=({" ".join(words)}) COMP_CWORD={len(words) - 1}
    ${{BASH_REMATCH[1]}}
    printf '%s\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == found


@pytest.mark.parametrize(("shell", "got"), [(["foo"], "foo"), ([], "nothing")])
def test_completion_for_another_shell_is_refused_by_name(shell, got, monkeypatch, capsys):
    told = f"error: --tyro-print-completion must be followed by one of bash, zsh, fish, got {got}"
    assert command.main(["--tyro-print-completion", *shell]) == 2
    assert " ".join(capsys.readouterr().err.split()) == told
    monkeypatch.setattr(sys, "argv", ["compare.py", "--tyro-print-completion", *shell])
    monkeypatch.setattr(cli.signal, "signal", lambda *args: None)
    assert cli.main("compare", "the experiment") == 2
    assert " ".join(capsys.readouterr().err.split()) == told


def test_the_help_of_a_flag_is_filled_and_what_an_experiment_decides_is_told(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ladder.py", "--help"])
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        usage.settings(Settings(), name="ladder", description="", decided=["recipe"])
    lines = capsys.readouterr().out.splitlines()
    line = [sys.executable, str(ROOT / "experiments" / "ladder.py"), "--help"]
    told = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert told.count("Not for ladder.py, which decides it itself.") == len(ladder.DECIDED)
    shown = " ".join(" ".join(line.strip("│ ") for line in lines).split())
    assert "those that failed, also each whole repeat that other work disturbed, or all of them. --mix" in shown
    assert "--recipe {blog,tuned} ... Not for ladder.py, which decides it itself. --batch-size" in shown
    assert any(line.strip("│ ").endswith("that other work disturbed, or all of them.") for line in lines)


def test_an_experiment_can_be_started_by_its_name():
    for name in EXPERIMENTS:
        path = ROOT / "experiments" / f"{name}.py"
        assert path.read_text().startswith("#!/usr/bin/env python\n")
        assert os.access(path, os.X_OK)
