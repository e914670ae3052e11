import io

import pytest
from rich.console import Console

from rresnet import command, doctor
from rresnet.monitor import Monitor, Usage


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
    assert "Nothing in 0.01 s" in text


def test_a_busy_machine_gets_advice_which_can_be_silenced(tmp_path, monkeypatch):
    fine, text = examined(tmp_path, monkeypatch, usage(busy=1000.0))
    assert not fine
    assert "foreign_load: other programs used the processors" in text
    fine, text = examined(tmp_path, monkeypatch, usage(busy=1000.0), advice=False)
    assert not fine
    assert "foreign_load" in text
    assert "other programs" not in text


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


def test_a_wrong_request_is_told_in_one_line(capsys):
    assert command.main(["doctor", "--seconds", "0"]) == 2
    assert "--seconds must be above 0, got 0" in capsys.readouterr().err
