import itertools
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rresnet.quality import steady


@pytest.mark.parametrize("count", [3, 4, 5, 6])
def test_the_chance_of_a_score_is_that_of_counting_all_orders(count):
    scores = [steady.kendall_score(order) for order in itertools.permutations(range(count))]
    for score in set(scores):
        expected = sum(s <= score for s in scores) / math.factorial(count)
        assert steady._chance_of_at_most(score, count) == pytest.approx(expected)


def test_three_falling_times_fall_and_three_others_do_not():
    assert steady.falls([3.0, 2.0, 1.0])
    assert not steady.falls([2.0, 1.0, 1.5])
    assert not steady.falls([1.0, 2.0, 3.0])
    assert steady.falls([1.0, 1.0])  # too few to tell


def test_a_warm_up_is_judged_by_its_latter_half():
    times = [1.62, 0.80, 0.60, 0.50, 0.51, 0.49, 0.52, 0.50]
    assert steady.latter_half(times) == [0.49, 0.52, 0.50]
    assert not steady.falls(steady.latter_half(times))
    assert steady.latter_half([9.0, 3.0, 2.0]) == [3.0, 2.0]


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=20))
def test_what_falls_does_not_fall_when_read_backwards(times):
    assert steady.kendall_score(times) == -steady.kendall_score(times[::-1])


def test_a_trend_is_flagged_only_when_it_is_sure_and_large():
    assert steady.trends([1.0, 1.1, 1.2, 1.3, 1.4, 1.5])
    assert steady.trends([1.5, 1.4, 1.3, 1.2, 1.1, 1.0])
    assert not steady.trends([1.0, 1.002, 1.004, 1.006, 1.008, 1.010])  # 1 % over the trial
    assert not steady.trends([1.0, 1.5, 1.0, 1.5, 1.0, 1.5])
    assert not steady.trends([1.0, 1.1, 1.2, 1.3])  # 1 of 24 orders: not sure enough
    assert not steady.trends([])


def test_the_normal_approximation_takes_over_smoothly():
    assert steady._chance_of_at_most(-100, 31) == pytest.approx(steady._chance_of_at_most(-100, 30), abs=0.015)


def test_hours_of_windows_are_looked_through_in_no_time():
    rising = [1.0 + 0.1 * i / 50_000 for i in range(50_000)]
    assert steady.trends(rising)
    assert not steady.trends([1.0, 1.2] * 25_000)
    assert len(steady._thinned(rising)) == steady.MOST_VALUES
    assert steady._thinned(rising)[0] == pytest.approx(statistics.fmean(rising[:250]))
    assert steady._thinned([1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]
