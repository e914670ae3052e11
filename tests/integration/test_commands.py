"""The command itself, on a real local Ray: a run, an interrupted one that is continued, several workers."""

import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from rresnet.terminal import counted

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
STUB = ROOT / "benchmarks" / "stub_run.py"  # the command without the training, which takes seconds to begin
QUICK = ["--model", "resnet18", "--batch-size", "16", "--seconds", "0.05"]


def compare(*flags, **options):
    command = [sys.executable, str(ROOT / "experiments" / "compare.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **options)


def test_a_run_from_another_folder_ends_with_rows_and_an_answer(tmp_path):
    flags = ["--precision", "fp32", "tf32", "--repeats", "4", "--processes", "2", "--results-dir", "out"]
    done = compare(*QUICK, *flags, cwd=tmp_path)
    assert done.returncode == 1, done.stderr  # a CPU has no TF32: those trials are rows, the others are measured
    assert re.search(r"Fastest(, not settled)?: cpu", done.stdout)
    assert "No GPU was measured" in done.stdout
    every = pd.read_parquet(tmp_path / "out" / "trials")
    assert len(every) == 16
    infeasible = every[every["precision"] == "tf32"]
    assert infeasible["status"].eq("infeasible").all()
    assert infeasible["error_message"].str.contains("use --precision fp32 or bf16").all()
    rows = every[every["precision"] == "fp32"]
    assert rows["status"].eq("ok").all()
    assert rows["observed_threads"].eq(rows["cpu_threads"]).all()
    # Built once in each of the two processes: a later visit finds its cell hot and takes one warm-up step.
    hot = rows.groupby(~rows["repeat"].isin([0, 2]))["startup_seconds"].median()
    assert hot[True] < hot[False]
    windows = pd.read_parquet(tmp_path / "out" / "windows").merge(rows[["trial_id", "repeat"]], on="trial_id")
    warm = windows[windows["kind"] == "warmup"].groupby(["trial_id", "repeat"])["steps"].sum().reset_index()
    assert warm.loc[~warm["repeat"].isin([0, 2]), "steps"].eq(1).all()
    assert warm.loc[warm["repeat"].isin([0, 2]), "steps"].ge(2).all()
    assert rows.groupby("recipe")["first_loss"].nunique().eq(1).all()  # the same weights and data in every process
    assert (
        rows["git_commit"].isna().all() or rows["git_commit"].str.fullmatch(r"[0-9a-f]{40}(-dirty-[0-9a-f]{8})?").all()
    )


def test_an_interrupted_run_keeps_its_rows_and_the_same_command_goes_on(tmp_path):
    flags = [*QUICK, "--repeats", "200", "--processes", "1", "--results-dir", str(tmp_path)]
    command = [sys.executable, str(ROOT / "experiments" / "compare.py"), *flags]
    running = subprocess.Popen([*command, "--fresh"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 400
    while len(list((tmp_path / "trials").glob("[!.]*.parquet"))) == 0 and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(2)
    running.send_signal(signal.SIGINT)
    stopped = time.monotonic()
    try:
        _, errors = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode == 130
    assert time.monotonic() - stopped < 30
    again = shlex.split(errors.split("To continue: ")[1])
    assert again[1:] == command[1:]  # without --fresh
    assert os.path.samefile(again[0], sys.executable)
    assert "Traceback" not in errors
    before = pd.read_parquet(tmp_path / "trials")
    assert 0 < len(before) < 400
    again = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert again.stdout is not None
    try:
        opening = [again.stdout.readline() for _ in range(5)]
        done = counted(len(before), "trial is", "trials are")
        assert any(f"{done} done" in line for line in opening), opening
        while len(pd.read_parquet(tmp_path / "trials")) <= len(before) and time.monotonic() < deadline + 400:
            time.sleep(0.2)
        again.send_signal(signal.SIGTERM)
        _, errors = again.communicate(timeout=120)
    finally:
        again.kill()
    assert again.returncode == 143, errors
    after = pd.read_parquet(tmp_path / "trials")
    assert set(before["trial_id"]) < set(after["trial_id"])
    assert after["trial_id"].is_unique
    assert after["run_id"].nunique() == 1
    kept = after.set_index("trial_id").loc[before["trial_id"], "started_at"].tolist()
    assert kept == before["started_at"].tolist()  # none was run twice


def test_a_terminal_that_closes_stops_a_run_as_sigterm_does(tmp_path):
    flags = ["--seconds", "0.2", "--repeats", "200", "--processes", "1", "--results-dir", str(tmp_path)]
    command = [sys.executable, str(STUB), *flags]
    of_us, of_it = os.openpty()
    ours = (
        "import fcntl, os, signal, sys, termios; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # nohup ignores it
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", ours, *command], stdin=of_it, stdout=of_it, stderr=of_it, start_new_session=True
    )
    os.close(of_it)
    deadline = time.monotonic() + 400
    try:
        while not list((tmp_path / "trials").glob("[!.]*.parquet")) and time.monotonic() < deadline:
            if select.select([of_us], [], [], 0.2)[0]:
                os.read(of_us, 65536)
        os.close(of_us)  # the system tells the one that the terminal controls
        assert running.wait(timeout=120) == 143
    finally:
        running.kill()
    assert 0 < len(pd.read_parquet(tmp_path / "trials")) < 800


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two workers need two processors")
def test_two_workers_train_as_one_group(tmp_path):
    shutil.copy(ROOT / "tests" / "samples.py", tmp_path)
    done = compare(
        "--model", "samples:few_layers", "--batch-size", "16", "--recipe", "tuned", "--precision", "fp32",
        "--num-workers", "1", "2", "--repeats", "1", "--epochs", "1", "--dataset", str(images(tmp_path / "data")),
        "--results-dir", "out", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 workers over 1: " in done.stdout
    row = pd.read_parquet(tmp_path / "out" / "trials").set_index("num_workers", drop=False).loc[2]
    assert (row["status"], row["num_workers"], row["global_batch_size"], row["cpu_threads"]) == ("ok", 2, 32, 1)
    assert row["observed_threads"] == 1
    assert 0 <= row["communication_seconds"] < row["step_seconds"]
    assert row["measured_images"] == 100  # of 100 training images none is left out and none counted twice
    epochs = pd.read_parquet(tmp_path / "out" / "epochs")
    assert epochs["images"].tolist() == [100, 100]


def images(folder):
    """120 tiny images in two classes; a sixth becomes the test split."""
    from PIL import Image

    for name, shade in (("dark", 40), ("light", 200)):
        (folder / name).mkdir(parents=True)
        for i in range(60):
            Image.new("L", (32, 32), shade + i % 20).save(folder / name / f"{i}.png")
    return folder
