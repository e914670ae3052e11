"""Which repeats are measured again: chosen by what disturbed them, and by what no longer pairs."""

import pandas as pd
import pytest
from tables import BLOG, TUNED, trials

from rresnet.analysis.load import to_repeat

START = pd.Timestamp("2026-01-01", tz="UTC")


def three_repeats(**of_the_last):
    """Two settings in three repeats of one command, a minute apart; one row of the third differs as given."""
    table = trials((BLOG, [100.0] * 3), (TUNED, [200.0] * 3))
    table["trial_id"] = [f"{cell} {repeat}" for cell in ("blog", "tuned") for repeat in range(3)]
    table["command_started_at"] = START
    table["started_at"] = START + pd.to_timedelta(table["repeat"], unit="min")
    table["quality_flags"] = [["few_windows"]] * len(table)
    for column, value in of_the_last.items():
        table[column] = [*table[column].iloc[:-1], value]
    return table


@pytest.mark.parametrize(
    ("of_the_last", "again"),
    [
        ({}, False),
        ({"images_per_second": 1.0}, False),  # a rate chooses nothing
        ({"quality_flags": None}, False),
        ({"quality_flags": ["few_windows", "swapping"]}, True),
        ({"hostname": "other"}, True),
        ({"started_at": START + pd.Timedelta(hours=1)}, False),  # long trials of one command
        ({"command_started_at": START + pd.Timedelta(minutes=2)}, False),  # gone on with after a minute
        ({"command_started_at": START + pd.Timedelta(hours=1), "started_at": START + pd.Timedelta(hours=1)}, True),
        ({"status": "failed", "quality_flags": ["steal"]}, False),  # is tried again anyway
    ],
)
def test_whole_repeats_are_measured_again_for_their_flags_or_where_they_are_torn(of_the_last, again):
    assert to_repeat(three_repeats(**of_the_last)) == ({"blog 2", "tuned 2"} if again else set())


def test_rows_that_do_not_know_their_command_are_kept():
    table = three_repeats(started_at=START + pd.Timedelta(hours=1))
    assert to_repeat(table.assign(command_started_at=pd.NaT)) == set()
