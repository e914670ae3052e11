"""Flags that are given more than once, values with commas in between, and environments that lack something."""

import os
import pwd
import shutil
import warnings
from pathlib import Path

import pytest

from rresnet.usage import NARROWEST, gathered, likely, prepared

SEVERAL = ("--price", "--batch-size")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ([], []),
        (["R", "--price", "a", "--price", "b"], ["R", "--price", "a", "b"]),
        (["--price=a", "R", "--price=b", "S"], ["R", "S", "--price", "a", "b"]),
        (["--price", "a", "--out", "O", "--price", "b", "--fresh"], ["--price", "a", "b", "--out", "O", "--fresh"]),
        (["--batch_size", "8", "--batch-size", "16", "32"], ["--batch-size", "8", "16", "32"]),
        (["--out", "O", "--out", "P"], ["--out", "O", "--out", "P"]),  # a flag of one value: the last is meant
        (["--out=O", "R", "--help"], ["--out=O", "R", "--help"]),
    ],
)
def test_no_value_of_a_flag_given_twice_is_lost(given, meant):
    assert gathered(given, SEVERAL) == meant


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--batch-size", "16,32"], ["--batch-size 16 32"]),
        (["--batch-size=16,auot"], ["--batch-size 16 auto"]),
        (["--batch-size", "16", "32"], []),
        (["--price", "gpu=4,10"], []),
        (["--format", "csv,json"], ["--format json"]),
        (["--format", "jsn"], ["--format json"]),
    ],
)
def test_values_with_commas_in_between_are_separated(given, meant):
    assert likely(given, {"--batch-size": ("auto",), "--format": ("csv", "json")}, SEVERAL) == meant


@pytest.mark.parametrize(("columns", "used"), [("1", NARROWEST), ("0", 100), ("60", 60)])
def test_hardly_any_width_is_widened_and_none_is_the_terminals(monkeypatch, columns, used):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(os, "get_terminal_size", lambda of: os.terminal_size((100, 20)))
    with prepared():
        assert shutil.get_terminal_size().columns == used
        assert os.environ.get("COLUMNS") == (None if columns == "0" else str(used))
    monkeypatch.undo()


def test_who_has_no_home_gets_that_of_nobody(monkeypatch):
    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(RuntimeError):
        Path.home()
    with prepared():
        assert Path.home() == Path("/nonexistent")
    monkeypatch.delenv("HOME")


def test_warnings_are_messages(capsys):
    with prepared():
        warnings.simplefilter("always")
        warnings.warn("a file is damaged", stacklevel=1)
    assert capsys.readouterr().err == "warning: a file is damaged\n"
