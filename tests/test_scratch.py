import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rresnet import scratch


def test_a_folder_is_gone_when_left_whatever_happens(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    try:
        with scratch.folder() as made:
            (made / "file").write_text("x")
            raise ValueError
    except ValueError:
        pass
    assert not made.exists()


def test_folders_of_the_dead_are_removed_and_others_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    dead = tmp_path / f"rresnet-of-{child.pid}-abc"
    alive = tmp_path / f"rresnet-of-{os.getpid()}-abc"
    foreign = [tmp_path / f"rresnet-of-{name}-2026" for name in ("notes", "9" * 20, "1_0", "²", "")]
    foreign.append(tmp_path / f"rresnet-{child.pid}-11-28")  # results of a day, where the year is no process
    for path in (dead, alive, *foreign):
        path.mkdir()
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    orphan = subprocess.Popen([*sleep, f"--session-dir={dead}/session"])  # as Ray's helpers are called
    nameless = subprocess.Popen(sleep, env={**os.environ, "TMPDIR": str(dead)})  # as some call themselves later
    others = [
        subprocess.Popen([*sleep, f"--session-dir={alive}/session"]),
        subprocess.Popen(sleep, env={**os.environ, "TMPDIR": str(tmp_path)}),
    ]
    scratch.remove_stale()
    assert orphan.wait(timeout=20) == nameless.wait(timeout=20) == -signal.SIGKILL
    for other in others:
        assert other.poll() is None
        other.kill()
        other.wait()
    assert not dead.exists()
    assert alive.exists()
    assert all(path.exists() for path in foreign)


def test_a_folder_whose_owner_lives_in_another_container_is_left_until_it_dies(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    hold = (
        "import time; from rresnet import scratch\n"
        "with scratch.folder() as made: print(made, flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    owner = subprocess.Popen([sys.executable, "-c", hold], env=environment, stdout=subprocess.PIPE, text=True)
    made = Path(owner.stdout.readline().strip())
    monkeypatch.setattr(scratch.psutil, "pid_exists", lambda number: False)  # as of another PID namespace
    monkeypatch.setattr(scratch.psutil, "process_iter", list)
    scratch.remove_stale()
    assert made.exists()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    scratch.remove_stale()
    assert not made.exists()


def test_sockets_have_a_short_place_where_that_of_temporary_files_is_too_long(tmp_path, monkeypatch):
    long, short = tmp_path / ("l" * 80), tempfile.gettempdir()
    long.mkdir()
    monkeypatch.setattr(scratch, "_SHORT", ("/nowhere", short))
    session = "/session_2026-11-24_12-00-00_123456_1234567/sockets/plasma_store"
    assert str(scratch.base_folder("/socket")) == short
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert str(scratch.base_folder("/socket")) == short
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/ü")
    assert str(scratch.base_folder("/socket")) == short  # Ray would fail there
    with scratch.folder(scratch.base_folder("/socket")) as made:
        assert len(f"{made}/socket") <= 107
        assert str(made.parent) == short
    monkeypatch.setattr(scratch, "_SHORT", ())
    with pytest.raises(OSError, match=r"can't hold the paths of sockets: set TMPDIR to a path of at most \d+ ASCII"):
        scratch.base_folder(session)


def test_folders_of_the_dead_are_removed_in_the_other_place_too(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    dead = tmp_path / "short" / f"rresnet-of-{child.pid}-abc"
    dead.mkdir(parents=True)
    scratch.remove_stale(dead.parent)
    assert not dead.exists()
