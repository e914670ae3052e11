"""Flags that are given more than once, and values with commas in between."""

import pytest

from rresnet.usage import gathered, likely

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
