"""How many repeats would make an interval as narrow as asked for."""

import math

import numpy as np
import pytest
from scipy import stats

from rresnet.analysis.statistics import (
    DRIFT_PER_SCATTER,
    DRIFT_ROUNDS,
    degrees_of_freedom,
    drift_share,
    in_order,
    long_run_variance,
    repeats_needed,
)

# Student's t at 97.5 % with 2 degrees of freedom, and the normal's: from any table.
T2, Z = 4.302652729911275, 1.959963984540054


def test_repeats_needed_without_drift():
    # Logs -s, 0, s in one process: variance s^2, long-run variance the same, so T2 * s / sqrt(n) <= ln 1.02.
    s = 0.01
    values = np.exp([-s, 0.0, s]).tolist()
    want = math.ceil((T2 * s / math.log(1.02)) ** 2)  # 4.7, so 5
    assert repeats_needed(in_order(values), 0.02, drift_limit=0) == want == 5


def test_repeats_needed_by_hand():
    # Four processes of two repeats, a process's mean at -3s, -s, s or 3s and each repeat s / 2 beside it.
    s, target = 0.01, 0.02
    values = np.exp([m * s + d * s / 2 for m in (-3, -1, 1, 3) for d in (-1, 1)]).tolist()
    series = in_order(values, processes=[0, 0, 1, 1, 2, 2, 3, 3])
    within = s**2 / 2  # of a repeat
    of_process = 20 * s**2 / 3 - within / 2  # of the four means, less what their repeats explain
    scatter = math.sqrt((2 * 20 + 8 / 4) * s**2 / 7)
    waves = [[math.sqrt(2 / 8) * math.cos(j * (i + 0.5) * math.pi / 8) for i in range(8)] for j in (1, 2)]
    long_run = sum(sum(w * math.log(v) for w, v in zip(wave, values, strict=True)) ** 2 for wave in waves) / 2
    t3 = 3.182446305284263  # with 3 degrees of freedom, which four processes allow from 21 repeats on: 0.4 * 21^(2/3)

    def half(count):
        drift = min(DRIFT_PER_SCATTER * scatter, 0.005) * Z
        variance = max(long_run / count, within / count + of_process / 4)
        quantile = t3 if int(0.4 * count ** (2 / 3)) >= 3 else T2
        u = count / DRIFT_ROUNDS
        return math.hypot(quantile * math.sqrt(variance), drift * math.sqrt(2 * (u - 1 + math.exp(-u)) / u**2))

    for target in (0.045, 0.06, 0.1):
        want = next((n for n in range(3, 400) if half(n) <= math.log1p(target)), None)
        found = repeats_needed(series, target, drift_limit=0.005, most=399)
        assert found == want, target
    assert repeats_needed(series, 0.01, drift_limit=0.005) is None


@pytest.mark.parametrize("processes", [[0] * 12, list(range(12))])  # in processes of one repeat its scatter is all
def test_repeats_needed_of_repeats_that_alternate(processes):
    # A series without slow waves, and so little scatter that unseen drift is bounded by it.
    s = 0.002
    values = np.exp([s, -s] * 6)
    scatter, target = s * math.sqrt(12 / 11), 0.004
    of_processes = len(set(processes))
    long_run = float(long_run_variance(np.log(values), degrees_of_freedom(12, of_processes)))
    assert long_run < 0.5 * scatter**2

    def half(count):
        quantile = float(stats.t.ppf(0.975, degrees_of_freedom(count, of_processes)))
        drift = DRIFT_PER_SCATTER * scatter * Z * math.sqrt(drift_share(count))
        return math.hypot(quantile * scatter / math.sqrt(count), drift)

    want = next(n for n in range(3, 1000) if half(n) <= math.log1p(target))
    assert repeats_needed(in_order(values, processes=processes), target) == want > 12


def test_repeats_needed_is_what_there_is_when_that_does():
    values = np.exp([-0.01, 0.0, 0.01]).tolist()
    assert repeats_needed(in_order(values), 0.5) == 3


def test_repeats_needed_under_three_repeats_is_unknown():
    assert repeats_needed(in_order([1.0, 2.0]), 0.1) is None


def test_most_repeats_are_tried():
    # As `test_repeats_needed_without_drift`: 5 do.
    values = np.exp([-0.01, 0.0, 0.01]).tolist()
    assert repeats_needed(in_order(values), 0.02, drift_limit=0, most=5) == 5
    assert repeats_needed(in_order(values), 0.02, drift_limit=0, most=4) is None


def test_processes_that_are_not_told_to_differ_are_no_reason_for_more_of_them():
    series = in_order(np.exp([0.0, 0.02, 0.04, 0.06]), processes=[0, 0, 1, 1])
    assert repeats_needed(series, 0.01, drift_limit=0) is not None


def test_no_number_of_repeats_makes_up_for_few_processes():
    # Two processes a factor 1.5 apart: more repeats in them don't bring the interval under 1 %.
    values = [1.0, 1.001, 1.5, 1.501]
    assert repeats_needed(in_order(values, processes=[0, 0, 1, 1]), 0.01, most=1000) is None


def test_more_processes_make_up_for_few():
    # The same, with two repeats in each process to come: what processes add, (log 1.5)^2 / 2, falls with their number.
    series = in_order([1.0, 1.001, 1.5, 1.501], processes=[0, 0, 1, 1])
    long_run = float(long_run_variance(series.logs, 2))

    def half(count):
        freedom = max(2, min(count // 2 - 1, int(0.4 * count ** (2 / 3))))
        variance = max(long_run / count, 5e-7 / count + math.log(1.5) ** 2 / 2 / (count // 2))
        return float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance)

    for target in (0.1, 2.0):  # within the second, four repeats, but not three, which would be one process
        want = next(n for n in range(3, 1000) if half(n) <= math.log1p(target))
        assert repeats_needed(series, target, drift_limit=0, in_more_processes=True) == want
    assert repeats_needed(series, 0.1, drift_limit=0) is None


def test_unseen_drift_needs_a_long_run():
    rng = np.random.default_rng(1)
    series = in_order(np.exp(0.02 * rng.standard_normal(12)))
    few, many = repeats_needed(series, 0.05, drift_limit=0), repeats_needed(series, 0.05)
    assert few < 12 < many
