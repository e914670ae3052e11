import subprocess
import sys
from pathlib import Path

import pytest

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


def test_a_gpu_that_is_not_there_says_what_to_do(tmp_path):
    from rresnet import hardware

    if hardware.probe().gpu_count:
        pytest.skip("there is a GPU")
    done = compare("--device", "gpu", "--results-dir", str(tmp_path))
    assert done.returncode == 2
    assert "no GPU in this Ray cluster" in done.stderr
    assert "drop --device gpu, or join a Ray cluster that has one with --address" in done.stderr


def test_dry_run_prints_the_plan_and_runs_nothing(tmp_path):
    done = compare("--dry-run", "--repeats", "2", "--results-dir", str(tmp_path / "out"))
    assert done.returncode == 0
    assert "12 planned trials, in the order they run" in done.stdout
    assert done.stdout.count(" tuned ") == done.stdout.count(" blog ") == 6, done.stdout
    assert "Predicted duration: not known until" in done.stdout
    assert not (tmp_path / "out").exists()


def test_help_has_examples_and_defaults():
    done = compare("--help")
    assert done.returncode == 0
    assert "python experiments/compare.py --batch-size 64 256" in done.stdout
    assert "(default: 32 64 128)" in done.stdout
