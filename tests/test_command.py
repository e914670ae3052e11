import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from types import SimpleNamespace

import pynvml
import pytest
import torch
from rich.console import Console
from samples import A100, LAPTOP
from small_results import BLOG, row, written

from rresnet import command, doctor
from rresnet import usage as usages
from rresnet.analysis import diff
from rresnet.cell import UsageError
from rresnet.quality.monitor import Monitor, Usage
from rresnet.training.limits import Limits


def examined(tmp_path, monkeypatch, usage, advice=True):
    monkeypatch.setattr(Monitor, "usage", lambda self: usage)
    out = io.StringIO()
    fine = doctor.examine(
        Console(file=out, width=120), seconds=0.01, results_dir=tmp_path / "none" / "yet", advice=advice
    )
    return fine, out.getvalue()


def usage(busy=0.0):
    return Usage(
        seconds=1.0, cpu_seconds=0.0, busy_cpu_seconds=busy, steal_cpu_seconds=0.0, major_faults=0, swapped_bytes=0
    )


@pytest.fixture(autouse=True)
def _fair(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_a_quiet_machine_is_fine(tmp_path, monkeypatch):
    fine, text = examined(tmp_path, monkeypatch, usage())
    assert fine
    assert "GFLOP/s" in text
    assert "Found nothing in 0.01 s" in text


def test_a_busy_machine_gets_advice_which_can_be_silenced(tmp_path, monkeypatch):
    fine, text = examined(tmp_path, monkeypatch, usage(busy=1000.0))
    assert not fine
    assert "foreign_load (1000.0 of " in text
    assert "): other programs used the processors" in text
    fine, text = examined(tmp_path, monkeypatch, usage(busy=1000.0), advice=False)
    assert not fine
    assert "foreign_load" in text
    assert "other programs" not in text


def test_work_that_would_be_in_the_way_of_a_trial_on_all_cores_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.hardware, "probe", lambda: A100)  # of 16 cores
    assert "foreign_load (0.6 of 16 CPUs)" in examined(tmp_path, monkeypatch, usage(busy=0.6))[1]


def test_a_gpu_for_which_pytorch_has_no_kernels_is_told(tmp_path, monkeypatch):
    def measure(kind, precision, threads):
        if kind == "cuda":
            raise RuntimeError("CUDA error: no kernel image is available for execution\nSearch for it")
        return Limits(matrix_flops_per_second=1e12, copy_bytes_per_second=1e10)

    monkeypatch.setattr(doctor.limits, "measure", measure)
    monkeypatch.setattr(doctor.hardware, "probe", lambda: A100)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(doctor, "_gpu_memory", lambda: (0, 80 * 2**30))
    monkeypatch.setattr(doctor, "_gpu_uuid", lambda: None)
    fine, text = examined(tmp_path, monkeypatch, usage())
    assert not fine
    assert " ".join(text.split()).count("fails on the NVIDIA A100 (CUDA error: no kernel image is available for") == 1


def test_under_a_quota_the_work_of_others_is_not_judged(tmp_path, monkeypatch):
    fine, text = examined(tmp_path, monkeypatch, replace(usage(), busy_cpu_seconds=None, steal_cpu_seconds=None))
    assert fine, text


def test_threads_held_down_by_the_environment_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "0")
    fine, text = examined(tmp_path, monkeypatch, usage())
    assert not fine
    assert "OMP_NUM_THREADS=0" in text


def test_the_command_alone_shows_where_to_start(capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main([])
    assert stopped.value.code == 0
    assert "rresnet doctor" in capsys.readouterr().out


def test_the_version_is_the_packages(capsys):
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"rresnet {metadata.version('rresnet')}\n"


def test_a_wrong_request_is_told_in_one_line(capsys):
    assert command.main(["doctor", "--seconds", "0"]) == 2
    assert "--seconds must be above 0, got 0" in capsys.readouterr().err


def results_with(folder, rates, run_id, commit="abc1234"):
    """A results folder of one cell, measured on one machine."""
    rows = [
        row(BLOG, r, rate, run_id=run_id, git_commit=commit, cpu_model="A CPU", cpu_count=2)
        for r, rate in enumerate(rates)
    ]
    return str(written(folder, rows))


QUIET = [100.0, 101.0, 99.0, 100.5, 99.5, 100.0]


def test_what_was_measured_with_changed_code_is_chosen_as_it_is_told(tmp_path):
    commit = "0123456789" * 4
    rows = [
        row(BLOG, repeat, rate, run_id=run_id, git_commit=commit + changes)
        for run_id, rate, changes in (("r1", 1.0, ""), ("r1", 2.0, "-dirty-aaaaaaaa"), ("r2", 3.0, "-dirty-bbbbbbbb"))
        for repeat in range(2 * (changes != ""), 2 + 2 * (changes != ""))
    ]
    folder = written(tmp_path / "results", rows)

    def rates(of):
        return set(diff.read_rows(f"{folder}@{of}")["images_per_second"])

    assert rates("01234") == {1.0}
    assert rates("0123456789-dirty-a") == rates(f"{commit}-dirty-a") == {2.0}
    assert rates("0123456789-dirty") == {2.0, 3.0}
    with pytest.raises(UsageError, match=r"r1 \(commit 0123456789, 0123456789-dirty-a{8}\); r2 \(commit 0123456789-d"):
        rates("9")


def test_a_slowdown_fails_and_the_same_again_does_not(tmp_path, capsys):
    before = results_with(tmp_path / "before", QUIET, "r1")
    again = results_with(tmp_path / "again", [r * 1.01 for r in QUIET], "r2")
    slow = results_with(tmp_path / "slow", [r * 0.85 for r in QUIET], "r3")
    assert command.main(["diff", before, again, "--fail-on-regression", "5%"]) == 0
    said = capsys.readouterr().out
    assert "not distinguishable" in said
    assert "Regressions by more than 5 %: none found." in said
    assert command.main(["diff", before, slow]) == 0
    assert "worse" in capsys.readouterr().out
    assert command.main(["diff", before, slow, "--fail-on-regression", "5%"]) == 1
    assert command.main(["diff", before, slow, "--fail-on-regression", "0.2"]) == 0
    capsys.readouterr()
    assert command.main(["diff", before, slow, "--format", "json", "--fail-on-regression", "5%"]) == 1
    assert json.loads(capsys.readouterr().out)["changes"][0]["verdict"] == "worse"
    assert command.main(["diff", before, slow, "--format", "markdown"]) == 0
    assert "| cpu blog batch 8 | A CPU, 2 CPUs | 0.85 |" in capsys.readouterr().out


@pytest.mark.parametrize("repeated", [1, 10_000])  # less, and more, than a pipe holds back
def test_a_slowdown_fails_though_nobody_reads_on(tmp_path, repeated):
    before = results_with(tmp_path / "before", QUIET, "r1")
    slow = results_with(tmp_path / "slow", [r * 0.85 for r in QUIET], "r2")
    code = f"""import sys
from rresnet import command
from rresnet.analysis import diff_text
render = diff_text.render
diff_text.render = lambda *of, **also: render(*of, **also) * {repeated}
sys.exit(command.main(["diff", *sys.argv[1:], "--fail-on-regression", "5%"]))"""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", code, before, slow], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_runs_of_one_folder_by_run_and_by_commit(tmp_path, capsys):
    folder = tmp_path / "results"
    before = results_with(folder, QUIET, "2026-a", commit="aaa111")
    (folder / "trials" / "r1.parquet").rename(folder / "trials" / "2026-a.parquet")
    results_with(tmp_path / "other", [r * 0.8 for r in QUIET], "2026-b", commit="bbb222")
    (tmp_path / "other" / "trials" / "r1.parquet").rename(folder / "trials" / "2026-b.parquet")
    assert command.main(["diff", f"{before}@2026-a", f"{before}@bbb2", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["changes"][0]["ratio"] == pytest.approx(0.8)
    assert found["differs"] == ["git_commit: aaa111 vs bbb222"]


def test_the_path_of_a_run_may_have_an_at_of_its_own(tmp_path, capsys):
    folder = results_with(tmp_path / "me@corp" / "results", QUIET, "r1")
    assert command.main(["diff", f"{folder}@r1", folder]) == 0
    assert command.main(["diff", folder, f"{folder}@abc"]) == 0
    copy = results_with(tmp_path / "results@old", QUIET, "r1")
    assert command.main(["diff", copy, f"{copy}@r1"]) == 0
    capsys.readouterr()
    assert command.main(["diff", folder, str(tmp_path / "me@corp" / "none")]) == 2
    assert "me@corp/none" in capsys.readouterr().err.replace("\n", "")


@pytest.mark.parametrize("lacks", ["compiler", "triton"])
def test_a_gpu_that_pytorch_can_not_use_is_told(tmp_path, monkeypatch, lacks):
    machine = replace(A100, cpu_cores=1, cpu_bf16=False, **{lacks: False})
    monkeypatch.setattr(doctor.hardware, "probe", lambda: machine)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    fine, text = examined(tmp_path, monkeypatch, usage())
    assert not fine
    assert "can't use the NVIDIA A100: install one that is built for its driver" in text
    assert "no C++ compiler (g++) with Python's headers" in text
    assert "GPU bf16" not in text
    assert "faster kernels on the CPU" not in text


def test_what_makes_a_cpus_kernels_is_missed(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.hardware, "probe", lambda: replace(LAPTOP, cpu_cores=1, gcc=False))
    fine, text = examined(tmp_path, monkeypatch, usage())
    assert not fine
    assert "there is no GCC (g++), with which tuned would have faster kernels on the CPU: install it" in text


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of 8 GiB that PyTorch sees, of which another process holds 6; NVML is not there."""

    def measure(kind, precision, threads):
        if kind == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Limits(matrix_flops_per_second=1e9, copy_bytes_per_second=1e9)

    def no_nvml():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    properties = SimpleNamespace(uuid="1234")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 * 2**30, 8 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 1 * 2**30)
    monkeypatch.setattr(doctor.limits, "measure", measure)
    monkeypatch.setattr(pynvml, "nvmlInit", no_nvml)


def test_a_gpu_whose_memory_others_hold_is_told(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.hardware, "probe", lambda: A100)
    fine, text = examined(tmp_path, monkeypatch, usage())
    assert not fine
    assert re.search(r"GPU bf16 +too little memory", text)
    assert "other processes hold 6 of 8 GiB of the GPU's memory" in text
    assert "NVML" not in text


def test_a_gpu_of_which_nvml_does_not_tell_is_told(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.hardware, "probe", lambda: replace(A100, gpu_count=0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (7 * 2**30, 8 * 2**30))
    fine, text = examined(tmp_path, monkeypatch, usage())
    assert not fine
    assert "PyTorch sees a GPU but NVML reports none" in text
    assert "other processes hold" not in text


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device here is always full")
@pytest.mark.parametrize(
    "line", [("diff", "R", "R"), ("export", "R", "--format", "csv"), ("doctor", "--seconds", "0.1"), ("--help",)]
)
def test_output_that_can_not_be_written_is_one_message(tmp_path, line):
    results = results_with(tmp_path, QUIET, "r1")
    whole = [sys.executable, "-m", "rresnet", *(results if word == "R" else word for word in line)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(whole, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert " ".join(done.stderr.split()).startswith("error: can't print (No space left on device): make space")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device here is always full")
@pytest.mark.parametrize("line", [["-m", "rresnet", "report", "none"], ["experiments/compare.py", "--batch-size", "0"]])
def test_a_message_that_can_not_be_written_leaves_the_exit_code(line, tmp_path):
    with open("/dev/full", "w") as full:
        assert subprocess.run([sys.executable, *line], stderr=full).returncode == 2
    reader, writer = os.pipe()
    os.close(reader)
    assert subprocess.run([sys.executable, *line], stderr=writer).returncode == 2
    os.close(writer)


def test_a_damaged_file_is_one_line(tmp_path):
    results = results_with(tmp_path, QUIET, "r1")
    (tmp_path / "trials" / "r2.parquet").write_text("junk")
    whole = [sys.executable, "-m", "rresnet", "export", results, "--format", "csv"]
    done = subprocess.run(whole, capture_output=True, text=True, check=True)
    (line,) = done.stderr.splitlines()
    assert re.match(r"warning: .*r2\.parquet is damaged .* and is left out", line)
    assert len(done.stdout.splitlines()) > 1


def test_what_a_command_can_not_write_is_not_told_of_its_output():
    def broken():
        raise PermissionError(13, "Permission denied")

    with pytest.raises(PermissionError):
        usages.command({"broken": broken}, prog="rresnet", description="", arguments=["broken"])
