import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rresnet.analysis.statistics import (
    DRIFT_LIMIT,
    DRIFT_PER_SCATTER,
    ROUND_SECONDS,
    Interval,
    degrees_of_freedom,
    drift_share,
    half_width,
    in_order,
    log_mean_interval,
    long_run_variance,
    repeats_needed,
    variance_components,
)

# Student's t at 97.5 % with 2 degrees of freedom, and the normal's: from any table.
T2, Z = 4.302652729911275, 1.959963984540054


def interval(values, processes=None, **options):
    return log_mean_interval(in_order(values, processes=processes), **options)


def logs(interval):
    return math.log(interval.low), math.log(interval.estimate), math.log(interval.high)


def test_three_repeats_without_drift_are_the_textbooks_t():
    # Logs 0, 1, 2 times ln 2: mean ln 2, sd ln 2, standard error ln 2 / sqrt 3, 2 degrees of freedom.
    found = interval([1.0, 2.0, 4.0], drift_limit=0)
    half = T2 * math.log(2) / math.sqrt(3)
    assert found.estimate == pytest.approx(2)
    assert logs(found) == pytest.approx((math.log(2) - half, math.log(2), math.log(2) + half))
    assert found.count == 3


def test_unseen_drift_is_two_and_a_half_times_the_scatter_of_a_quiet_run():
    # sd 0.001, so drift of 0.0025; over 3 of 30 repeats u = 0.1 and the share is 2 (0.1 - 1 + exp(-0.1)) / 0.01.
    values = np.exp([-0.001, 0.0, 0.001]).tolist()
    share = 2 * (0.1 - 1 + math.exp(-0.1)) / 0.01
    half = math.sqrt((T2 * 0.001 / math.sqrt(3)) ** 2 + (Z * 0.0025) ** 2 * share)
    assert logs(interval(values)) == pytest.approx((-half, 0, half), rel=1e-6, abs=1e-12)


def test_unseen_drift_is_at_most_the_limit_in_a_loud_run():
    # sd 0.1, and 2.5 times that is beyond the limit of 0.045.
    values = np.exp([-0.1, 0.0, 0.1]).tolist()
    share = 2 * (0.1 - 1 + math.exp(-0.1)) / 0.01
    half = math.sqrt((T2 * 0.1 / math.sqrt(3)) ** 2 + (Z * 0.045) ** 2 * share)
    assert logs(interval(values)) == pytest.approx((-half, 0, half), abs=1e-9)


def test_long_run_variance_of_a_step():
    # Four values -1 -1 1 1: the first cosine is sqrt(1/2) cos((i + 1/2) pi / 4), so its projection is
    # -sqrt(1/2) * 2 * (cos(pi/8) + cos(3 pi/8)); the second, cos((i + 1/2) pi / 2), is symmetric and sees nothing.
    first = 2 * (math.cos(math.pi / 8) + math.cos(3 * math.pi / 8)) / math.sqrt(2)
    assert long_run_variance(np.array([-1.0, -1.0, 1.0, 1.0]), 2) == pytest.approx(first**2 / 2)


def test_alternation_is_not_long_run_variance():
    values = np.tile([1.0, -1.0], 12)
    assert long_run_variance(values, 2) < 0.05 * values.var(ddof=1)


@pytest.mark.parametrize(
    ("count", "processes", "freedom"),
    [
        (3, 1, 2),
        (12, 3, 2),
        (12, 1, 2),  # processes can't be told apart from time: as cautious as with three
        (12, 12, 2),  # 0.4 * 12^(2/3) = 2.1
        (24, 3, 2),
        (24, 6, 3),  # 0.4 * 24^(2/3) = 3.3
        (125, 6, 5),  # 0.4 * 125^(2/3) = 10, but one less than processes
        (125, 125, 10),
    ],
)
def test_degrees_of_freedom(count, processes, freedom):
    assert degrees_of_freedom(count, processes) == freedom


def test_repeats_that_follow_one_another_fast_are_fewer_rounds():
    x = [1.0, 1.1, 0.9, 1.05, 1.2, 0.8, 1.0, 1.1]
    at = np.arange(8.0)
    assert in_order(x).rounds == 8
    assert in_order(x, times=ROUND_SECONDS * at).rounds == 8
    assert in_order(x, times=10 * ROUND_SECONDS * at).rounds == 8  # never more than repeats
    assert in_order(x, times=ROUND_SECONDS / 2 * at).rounds == pytest.approx(4)
    assert in_order(x, times=0 * at).rounds == 1  # a clock that tells nothing
    assert in_order(x, times=np.full(8, np.nan)).rounds == 8
    assert in_order([1.0], times=[5.0]).rounds == 1


def test_the_order_of_repeats_and_one_night_between_two_commands_do_not_change_the_rounds():
    times = np.array([0.0, 1, 2, 3, 4, 40_000, 40_001, 40_002])
    shuffled = np.array([3, 0, 7, 5, 1, 2, 6, 4])
    series = in_order(np.ones(8) + shuffled, shuffled, times=times[shuffled])
    assert series.rounds == pytest.approx(8 / ROUND_SECONDS)


def test_fewer_rounds_make_a_wider_interval_and_more_repeats_are_needed():
    values, processes = np.exp(0.02 * np.random.default_rng(3).standard_normal(40)), np.arange(40) // 4
    fast, slow = (in_order(values, processes=processes, times=gap * np.arange(40)) for gap in (0.5, 4.0))
    assert log_mean_interval(slow) == log_mean_interval(in_order(values, processes=processes))
    of_fast = log_mean_interval(fast)
    half = half_width(np.log(values), 10, rounds=5.0)
    assert math.log(of_fast.high / of_fast.low) / 2 == pytest.approx(float(half))
    assert half > Z * DRIFT_LIMIT * math.sqrt(drift_share(5.0)) > float(half_width(np.log(values), 10))
    assert repeats_needed(fast, 0.02) > 2 * repeats_needed(slow, 0.02)
    # Without drift: the variance of a repeat, and two degrees of freedom, for these repeats are some 9 rounds.
    variance = max(float(long_run_variance(fast.logs, 2)), variance_components(fast).repeat_sd ** 2)
    assert repeats_needed(fast, 0.01, drift_limit=0) == math.ceil(variance * (T2 / math.log(1.01)) ** 2)


def test_drift_share_falls_with_the_length_of_the_run():
    assert drift_share(1e-6) == pytest.approx(1)
    assert drift_share(30) == pytest.approx(2 / math.e)  # u = 1: 2 (1 - 1 + 1/e)
    assert drift_share(3000) == pytest.approx(2 / 100, rel=0.02)


@pytest.mark.parametrize("count", [1, 2])
def test_no_interval_under_three_repeats(count):
    assert interval([4.0] * count) == Interval(estimate=pytest.approx(4), low=None, high=None, count=count)
    with pytest.raises(ValueError, match="an interval needs at least 3 repeats"):
        half_width([0.0] * count, 1)


def test_what_is_slower_is_told_too_where_it_is_beyond_the_noise_floor():
    slower = Interval(estimate=0.8, low=0.7, high=0.9, count=6, floor=0.2)
    assert slower.distinguishable
    assert not replace(slower, floor=0.3).distinguishable  # 1 / 1.3 is 0.77


def test_equal_values_have_an_interval_of_no_width():
    assert logs(interval([2.0] * 6)) == pytest.approx([math.log(2)] * 3)


def test_a_missing_repeat_is_the_run_without_it():
    values = [1.1, 1.2, 1.15, 1.3, 1.25]
    gap = log_mean_interval(in_order(values, [0, 1, 5, 6, 11], [0, 0, 1, 1, 2]))
    assert gap == log_mean_interval(in_order(values, [0, 1, 2, 3, 4], [0, 0, 1, 1, 2]))


@pytest.mark.parametrize("processes", [[0] * 6, [0, 0, 0, 0, 1, 2], [0, 0, 1, 1, 2, 2], [0, 1, 2, 3, 4, 5]])
def test_any_split_into_processes_has_an_interval(processes):
    found = interval([1.1, 1.2, 1.15, 1.3, 1.25, 1.2], processes)
    assert found.low < found.estimate < found.high


def test_an_outlier_widens_the_interval_and_stays_inside():
    clean = np.exp(0.01 * np.sin(np.arange(12.0) * 2)).tolist()
    spoilt = [*clean[:5], 0.5 * clean[5], *clean[6:]]
    assert interval(spoilt).low < 1 < interval(spoilt).high
    assert interval(spoilt).high / interval(spoilt).low > interval(clean).high / interval(clean).low


def test_variance_components_of_equal_processes():
    # Logs 0 2 | 4 6: within mean square 2; process means 1 and 5, between mean square 2 * 2 * 2^2 = 16,
    # so (16 - 2) / 2.
    found = variance_components(in_order(np.exp([0.0, 2.0, 4.0, 6.0]), processes=[0, 0, 1, 1]))
    assert (found.repeat_sd, found.process_sd) == pytest.approx((math.sqrt(2), math.sqrt(7)))
    assert found.processes == 2


def test_variance_components_of_unequal_processes():
    # Logs 0 1 2 | 7: within mean square (1 + 0 + 1) / (4 - 2) = 1; grand mean 2.5, between mean square
    # 3 * 1.5^2 + 1 * 4.5^2 = 27; repeats per process (4 - (9 + 1) / 4) / 1 = 1.5.
    found = variance_components(in_order(np.exp([0.0, 1.0, 2.0, 7.0]), processes=[5, 5, 5, 9]))
    assert (found.repeat_sd, found.process_sd) == pytest.approx((1, math.sqrt(26 / 1.5)))


def test_variance_components_that_can_not_be_told():
    one_process = variance_components(in_order([1.0, math.e]))
    assert one_process.process_sd is None
    assert one_process.repeat_sd == pytest.approx(math.sqrt(0.5))
    one_each = variance_components(in_order([1.0, 2.0, 3.0], processes=[0, 1, 2]))
    assert (one_each.repeat_sd, one_each.process_sd) == (None, None)


def test_processes_that_agree_better_than_repeats_add_nothing():
    # Logs 0 2 | 0 2: the process means are equal.
    found = variance_components(in_order(np.exp([0.0, 2.0, 0.0, 2.0]), processes=[0, 0, 1, 1]))
    assert found.process_sd == 0


def test_processes_differ_where_the_analysis_of_variance_says_so():
    # The first two of the tests above: mean squares 16 over 2 and 27 over 1, with 1 and 2 degrees of freedom, for which
    # the F-test's limit is 18.5.
    assert not variance_components(in_order(np.exp([0.0, 2.0, 4.0, 6.0]), processes=[0, 0, 1, 1])).processes_differ
    assert variance_components(in_order(np.exp([0.0, 1.0, 2.0, 7.0]), processes=[5, 5, 5, 9])).processes_differ
    assert variance_components(in_order([1.0, 1.0, 2.0, 2.0], processes=[0, 0, 1, 1])).processes_differ  # no scatter
    assert not variance_components(in_order([1.0] * 4, processes=[0, 0, 1, 1])).processes_differ
    # Two processes of three repeats, a distance d apart: mean squares 1.5 d^2 over 1, limit 7.71 at 1 and 4 degrees.
    for apart, differ in ((2.2, False), (2.3, True)):
        six = np.exp([-1.0, 0.0, 1.0, apart - 1, apart, apart + 1])
        assert variance_components(in_order(six, processes=[0, 0, 0, 1, 1, 1])).processes_differ is differ
    assert not variance_components(in_order([1.0, 2.0, 3.0], processes=[0, 1, 2])).processes_differ


def test_runs_side_by_side_each_have_their_own_width():
    runs = [[0.0, 0.1, -0.1, 0.2], [0.0, 0.3, -0.5, 0.1]]
    together = half_width(runs, 2, drift_limit=1.0)
    assert together.tolist() == pytest.approx([float(half_width(run, 2, drift_limit=1.0)) for run in runs])
    assert together[0] < together[1]


def test_the_level_and_the_processes_are_those_that_are_given():
    # 40 repeats in 6 processes: int(0.4 * 40^(2/3)) = 4 degrees of freedom. Quantiles of 90 % from any table.
    t4, z = 2.13184678632665, 1.6448536269514722
    x = np.array([0.01 * (i * i % 7) for i in range(40)])
    found = interval(np.exp(x).tolist(), [i * 6 // 40 for i in range(40)], level=0.9)
    drift = min(DRIFT_PER_SCATTER * x.std(ddof=1), DRIFT_LIMIT) * math.sqrt(drift_share(40))
    half = math.hypot(t4 * math.sqrt(long_run_variance(x, 4) / 40), z * drift)
    assert logs(found) == pytest.approx([x.mean() - half, x.mean(), x.mean() + half])


@pytest.mark.parametrize("level", [0, 1, 1.5, -0.1, math.nan])
def test_a_level_is_between_0_and_1(level):
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        interval([1.0, 2.0, 3.0], level=level)


def test_three_unequal_processes_have_the_textbooks_components():
    # Groups of 1, 2 and 3: means 0, 3 and 4 about 3; within 2 * 0.25 + 2 * 1 over 3 = 2.5 / 3; between (9 + 0 + 3) / 2.
    groups = [[0.0], [2.5, 3.5], [3.0, 4.0, 5.0]]
    values = np.exp([v for group in groups for v in group]).tolist()
    found = variance_components(in_order(values, processes=[0, 1, 1, 2, 2, 2]))
    per_process = (6 - (1 + 4 + 9) / 6) / 2
    assert found.repeat_sd == pytest.approx(math.sqrt(2.5 / 3))
    assert found.process_sd == pytest.approx(math.sqrt((6 - 2.5 / 3) / per_process))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], []), "at least one repeat"),
        (([1.0, 2.0], [0], [0, 0]), "of equal length, got 2, 1 and 2"),
        (([1.0, 0.0], [0, 7], [0, 0]), "positive and finite, got 0.0 in repeat 7"),
        (([1.0, -2.0], [0, 1], [0, 0]), "positive and finite, got -2.0"),
        (([1.0, math.nan], [0, 1], [0, 0]), "positive and finite, got nan"),
        (([1.0, math.inf], [0, 1], [0, 0]), "positive and finite, got inf"),
        (([1.0, 2.0], [3, 3], [0, 0]), "got 3 more than once"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        in_order(*arguments)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match=r"level must be between 0 and 1, for example 0\.95, got 95"):
        interval([1.0], level=95)
    with pytest.raises(ValueError, match="drift_limit must be at least 0"):
        interval([1.0, 2.0, 3.0], drift_limit=-0.1)
    with pytest.raises(ValueError, match="target must be positive"):
        repeats_needed(in_order([1.0, 2.0, 3.0]), 0)


RUNS = st.lists(st.floats(0.01, 100), min_size=3, max_size=30)


@given(values=RUNS, factor=st.floats(0.001, 1000))
def test_scaled_values_have_the_scaled_interval(values, factor):
    before, after = interval(values), interval([factor * v for v in values])
    shifted = [x + math.log(factor) for x in logs(before)]
    assert logs(after) == pytest.approx(shifted, rel=1e-7, abs=1e-7)


@given(values=RUNS)
def test_inverted_values_have_the_inverted_interval(values):
    before, after = interval(values), interval([1 / v for v in values])
    assert logs(after) == pytest.approx([-x for x in reversed(logs(before))], rel=1e-7, abs=1e-7)


@given(values=RUNS, data=st.data())
def test_the_order_of_rows_does_not_matter(values, data):
    rows = [(v, i, i // 4) for i, v in enumerate(values)]
    shuffled = data.draw(st.permutations(rows))
    one, other = (log_mean_interval(in_order(*zip(*of, strict=True))) for of in (shuffled, rows))
    assert one == other


@given(values=RUNS, levels=st.tuples(st.floats(0.5, 0.99), st.floats(0.5, 0.99)))
def test_a_higher_level_is_no_narrower_and_holds_the_estimate(values, levels):
    narrow, wide = (interval(values, level=level) for level in sorted(levels))
    assert wide.low <= narrow.low <= narrow.estimate <= narrow.high <= wide.high


@given(values=RUNS, limits=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_more_room_for_drift_is_no_narrower(values, limits):
    narrow, wide = (interval(values, drift_limit=limit) for limit in sorted(limits))
    assert wide.low <= narrow.low
    assert narrow.high <= wide.high


@pytest.mark.parametrize("repeats", [6, 12, 24])
@pytest.mark.parametrize("process_sd", [0.0, 0.05])
def test_coverage_without_drift_is_the_level_whatever_processes_add(repeats, process_sd):
    rng = np.random.default_rng(7)
    noise = 0.05 * rng.standard_normal((4000, repeats))
    process = process_sd * np.repeat(rng.standard_normal((4000, 3)), repeats // 3, axis=1)
    x = noise + process
    coverage = np.mean(np.abs(x.mean(axis=1)) <= half_width(x, 3, drift_limit=0))
    assert 0.935 <= coverage <= 0.965


@pytest.mark.parametrize("repeats", [6, 12, 24])
def test_coverage_with_drift_that_a_run_can_not_see(repeats):
    # Noise 7 %, drift 6 % forgotten in 32 repeats: the bf16 / fp32 pairs of the drift trace, roughly.
    rng = np.random.default_rng(7)
    lag = np.abs(np.subtract.outer(np.arange(repeats), np.arange(repeats)))
    covariance = 0.07**2 * np.eye(repeats) + 0.06**2 * np.exp(-lag / 32)
    x = rng.standard_normal((4000, repeats)) @ np.linalg.cholesky(covariance).T
    coverage = np.mean(np.abs(x.mean(axis=1)) <= half_width(x, 3))
    plain = stats.t.ppf(0.975, repeats - 1) * x.std(axis=1, ddof=1) / math.sqrt(repeats)
    assert 0.93 <= coverage <= 0.97
    assert np.mean(np.abs(x.mean(axis=1)) <= plain) < 0.75
