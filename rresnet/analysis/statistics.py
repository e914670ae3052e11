"""The geometric mean of repeats and its interval, as pure functions; `docs/statistics.md` says why these."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special  # scipy.stats takes 2 s to import

MINIMUM_REPEATS = 3
MOST_REPEATS = 10_000  # that a forecast considers

# Drift that is slower than a run, and so can't be seen in it (`docs/statistics.md` has the calibration).
DRIFT_PER_SCATTER = 2.5  # its sd between periods, at most this many times the sd of one repeat,
DRIFT_LIMIT = 0.045  # and at most this, in log units: 4.5 %
RATE_DRIFT_LIMIT = 0.08  # the same for a rate alone, which no pairing shields (`benchmarks/unpaired.py`)
DRIFT_ROUNDS = 30.0  # how many rounds it takes to change,
ROUND_SECONDS = 4.0  # each of them this long: the time between rounds in the traces used for the calibration


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate on its natural scale, its interval (None under `MINIMUM_REPEATS`) and how many repeats entered."""

    estimate: float
    low: float | None
    high: float | None
    count: int
    floor: float | None = None  # how far apart identical cells came out (0.02 is 2 %), where that was measured

    @property
    def distinguishable(self) -> bool | None:
        """Whether the interval leaves out 1 and the estimate is beyond the noise floor; None without an interval."""
        if self.low is None or self.high is None:
            return None
        beyond = self.floor is None or abs(math.log(self.estimate)) > math.log1p(self.floor)
        return beyond and not self.low <= 1.0 <= self.high

    @property
    def bounds(self) -> tuple[float, ...]:
        """Low and high; empty where there are none."""
        return () if self.low is None or self.high is None else (self.low, self.high)

    @property
    def reach(self) -> float | None:
        """How far the interval reaches above the estimate, as a share of it (0.02 is 2 %); None without an interval."""
        return None if self.high is None else self.high / self.estimate - 1


@dataclass(frozen=True, kw_only=True)
class Components:
    """How much repeats and processes each add: standard deviations of the log value, None where they can't be told.

    `repeat_sd` is that of a repeat within its process, `process_sd` that of a process among the others, which is more
    than chance if `processes_differ` (F-test at 95 %).
    """

    repeat_sd: float | None
    process_sd: float | None
    processes: int
    processes_differ: bool = False


class Series(NamedTuple):
    """Logs of values, one for each repeat in order of time, and the trial process of each."""

    logs: NDArray[np.float64]
    processes: NDArray[np.int64]
    rounds: float  # as many as repeats, or fewer if these follow one another faster than `ROUND_SECONDS`


def in_order(
    values: ArrayLike,
    repeats: ArrayLike | None = None,
    processes: ArrayLike | None = None,
    times: ArrayLike | None = None,
) -> Series:
    """The series of positive values, one for each repeat.

    Args:
        values: paired ratios, or rates.
        repeats: numbers that put the values in order of time; gaps do not matter. Default: the order given.
        processes: the trial process of each value. Default: one process made them all.
        times: when each was measured, in seconds, NaN where that is not known. They matter because the machine drifts
            with time, however many repeats are measured meanwhile. Default: none is known, and each repeat counts as a
            round.

    Raises:
        ValueError: no values, one that is not positive and finite, unequal lengths, or a repeat twice.
    """
    x = np.asarray(values, dtype=np.float64)
    at = np.arange(len(x)) if repeats is None else np.asarray(repeats)
    of = np.zeros(len(x), np.int64) if processes is None else np.asarray(processes, dtype=np.int64)
    if not len(x) == len(at) == len(of):
        lengths = f"{len(x)}, {len(at)} and {len(of)}"
        raise ValueError(f"values, repeats and processes must be of equal length, got {lengths}")
    if len(x) == 0:
        raise ValueError("values must hold at least one repeat, got none")
    for value, repeat in zip(x.tolist(), at.tolist(), strict=True):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"values must be positive and finite, got {value} in repeat {repeat}")
    numbers, counts = np.unique(at, return_counts=True)
    if len(numbers) < len(x):
        raise ValueError(f"repeats must differ (one value for each), got {numbers[counts > 1][0]} more than once")
    order = np.argsort(at)
    return Series(np.log(x)[order], of[order], _rounds(len(x), None if times is None else np.asarray(times)[order]))


def _rounds(count: int, times: NDArray[np.float64] | None) -> float:
    """How many rounds so many repeats are. The median time between two of them ignores a night between commands."""
    apart = np.abs(np.diff(np.empty(0) if times is None else times))
    known = apart[np.isfinite(apart)]
    return max(1.0, count * min(1.0, float(np.median(known)) / ROUND_SECONDS)) if len(known) else float(count)


def log_mean_interval(series: Series, level: float = 0.95, *, drift_limit: float = DRIFT_LIMIT) -> Interval:
    """The geometric mean of the values and its interval, `exp(mean ± half_width(logs))`.

    Args:
        series: from `in_order`.
        level: confidence level.
        drift_limit: passed to `half_width`; 0 claims only the minutes that were measured.

    Raises:
        ValueError: the level or the limit is out of range.
    """
    _check(level, drift_limit)
    logs, of_process, rounds = series
    mean = float(logs.mean())
    if len(logs) < MINIMUM_REPEATS:
        return Interval(estimate=math.exp(mean), low=None, high=None, count=len(logs))
    half = float(half_width(logs, len(set(of_process)), level, rounds=rounds, drift_limit=drift_limit))
    return Interval(estimate=math.exp(mean), low=math.exp(mean - half), high=math.exp(mean + half), count=len(logs))


def independent_ratio(numerator: Interval, denominator: Interval) -> Interval:
    """The ratio of two means that were measured apart, with its interval.

    `exp(log ratio ± sqrt(a² + b²))` with the half-widths a and b of the two intervals in log units, each with its own
    degrees of freedom and drift allowance (method of variance estimates recovery, Zou and Donner 2008). `count` is the
    lesser of the two.
    """
    estimate = numerator.estimate / denominator.estimate
    count = min(numerator.count, denominator.count)
    bounds = numerator.bounds, denominator.bounds
    if not all(bounds):
        return Interval(estimate=estimate, low=None, high=None, count=count)
    factor = math.exp(math.hypot(*(math.log(high / low) / 2 for low, high in bounds)))
    return Interval(estimate=estimate, low=estimate / factor, high=estimate * factor, count=count)


def half_width(
    logs: ArrayLike,
    processes: int,
    level: float = 0.95,
    *,
    rounds: float | None = None,
    drift_limit: float = DRIFT_LIMIT,
) -> NDArray[np.float64]:
    """Half the width of the interval of the mean: what the run shows, and an allowance for what it can't show.

    `sqrt((t * sqrt(long_run_variance / n))**2 + (z * drift)**2)`. The first part is the equal-weighted cosine estimate
    with Student's t (Lazarus, Lewis, Stock and Watson 2018). The second is a drift between periods with an
    sd of `min(DRIFT_PER_SCATTER * sd of one repeat, drift_limit)`, averaged over the run (`drift_share`).

    Args:
        logs: log values in order of time, shape (..., n) with n of at least 3; leading axes are separate runs.
        processes: how many trial processes made them; more of them allow more degrees of freedom.
        level: confidence level.
        rounds: how many rounds of `ROUND_SECONDS` the values span, at most one per value. Default: one per value.
        drift_limit: largest sd that the unseen drift is assumed to have, in log units.

    Returns:
        Half-widths in log units, of the shape of the leading axes.

    Raises:
        ValueError: there are fewer than 3 values.
    """
    x = np.asarray(logs, dtype=np.float64)
    count = x.shape[-1]
    if count < MINIMUM_REPEATS:
        raise ValueError(f"an interval needs at least {MINIMUM_REPEATS} repeats, got {count}")
    rounds = count if rounds is None else rounds
    freedom = degrees_of_freedom(rounds, processes)
    seen = special.stdtrit(freedom, (1 + level) / 2) * np.sqrt(long_run_variance(x, freedom) / count)
    scatter = x.std(axis=-1, ddof=1)
    unseen = np.minimum(DRIFT_PER_SCATTER * scatter, drift_limit) * math.sqrt(drift_share(rounds))
    return np.asarray(np.hypot(seen, special.ndtri((1 + level) / 2) * unseen))


def degrees_of_freedom(rounds: float, processes: int) -> int:
    """How many cosines are averaged: at least 2, fewer than processes (Kalibera and Jones 2013), at most 0.4 n^(2/3).

    The last is the rule of Lazarus, Lewis, Stock and Watson (2018), with n the number of rounds, not of repeats: if
    repeats follow one another faster, further cosines would be too fast to see the drift.
    """
    return max(2, min(processes - 1, int(0.4 * rounds ** (2 / 3))))


def long_run_variance(logs: NDArray[np.float64], freedom: int) -> NDArray[np.float64]:
    """Variance of one repeat that gives the mean's variance when divided by n, even if repeats are correlated in time.

    The mean square of the projections on the `freedom` slowest type II cosines (Müller 2007; Lazarus, Lewis, Stock
    and Watson 2018). For independent repeats of equal variance it is unbiased; with freedom n - 1 it is the textbook's.
    """
    count = logs.shape[-1]
    waves = np.arange(1, freedom + 1)[:, None] * (np.arange(count) + 0.5)[None, :] * (np.pi / count)
    return np.asarray(((logs @ (math.sqrt(2 / count) * np.cos(waves)).T) ** 2).mean(axis=-1))


def drift_share(rounds: float) -> float:
    """Variance of the mean of a drift over a run, relative to the drift's own: 1 for a short run, 2 / u for a long one.

    For drift that is forgotten exponentially: `2 (u - 1 + exp(-u)) / u**2`, `u = rounds / DRIFT_ROUNDS` (Taylor 1922).
    """
    u = rounds / DRIFT_ROUNDS
    return 2 * (u + math.expm1(-u)) / u**2


def variance_components(series: Series) -> Components:
    """How much repeats and processes each add to the scatter of the log value.

    The analysis of variance estimate for unequal groups (Searle, Casella and McCulloch 1992); a negative
    variance is reported as 0.
    """
    logs, of_process, _ = series
    groups = [logs[of_process == process] for process in np.unique(of_process)]
    total, many = len(logs), len(groups)
    repeat_sd, process_sd, differ = None, None, False
    if total > many:
        within = sum(float(((g - g.mean()) ** 2).sum()) for g in groups) / (total - many)
        repeat_sd = math.sqrt(within)
        if many > 1:
            between = sum(len(g) * float(g.mean() - logs.mean()) ** 2 for g in groups) / (many - 1)
            per_process = (total - sum(len(g) ** 2 for g in groups) / total) / (many - 1)
            process_sd = math.sqrt(max(0.0, (between - within) / per_process))
            by_chance = special.fdtrc(many - 1, total - many, between / within) if within else float(not between)
            differ = bool(by_chance < 0.05)
    return Components(repeat_sd=repeat_sd, process_sd=process_sd, processes=many, processes_differ=differ)


def repeats_needed(
    series: Series,
    target: float,
    level: float = 0.95,
    *,
    drift_limit: float = DRIFT_LIMIT,
    most: int = MOST_REPEATS,
    in_more_processes: bool = False,
) -> int | None:
    """How many repeats in all until the interval reaches at most `target` above the mean, relative: 0.02 is 2 %.

    They are assumed to run in as many processes as now or, with `in_more_processes`, in more of them with as many
    repeats each. This is a forecast: it assumes that the scatter stays as seen so far. The variance of the mean follows
    from the variance components (that of processes only if they differ) or from the long-run variance, whichever gives
    more. The rest is as for `log_mean_interval`.

    Returns:
        The number of repeats; None if `most` would not be enough, or if there are fewer than `MINIMUM_REPEATS`.

    Raises:
        ValueError: as for `log_mean_interval`, or the target is not positive.
    """
    logs, pace = series.logs, series.rounds / len(series.logs)
    _check(level, drift_limit)
    if not target > 0:
        raise ValueError(f"target must be positive (0.02 is 2 %), got {target}")
    if len(logs) < MINIMUM_REPEATS:
        return None
    components = variance_components(series)
    long_run = float(long_run_variance(logs, degrees_of_freedom(series.rounds, components.processes)))
    scatter, tail = float(logs.std(ddof=1)), (1 + level) / 2
    drift = min(DRIFT_PER_SCATTER * scatter, drift_limit) * float(special.ndtri(tail))
    repeat_variance = scatter**2 if components.repeat_sd is None else components.repeat_sd**2
    process_variance = (components.process_sd or 0.0) ** 2 if components.processes_differ else 0.0
    quantiles = special.stdtrit(np.arange(degrees_of_freedom(most, most) + 1), tail)
    for count in range(MINIMUM_REPEATS, most + 1):
        processes = max(1, count * components.processes // len(logs)) if in_more_processes else components.processes
        variance = max(long_run / count, repeat_variance / count + process_variance / processes)
        seen = quantiles[degrees_of_freedom(count * pace, processes)] * math.sqrt(variance)
        if math.hypot(seen, drift * math.sqrt(drift_share(count * pace))) <= math.log1p(target):
            return count
    return None


def _check(level: float, drift_limit: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, for example 0.95, got {level}")
    if not drift_limit >= 0:
        raise ValueError(f"drift_limit must be at least 0, got {drift_limit}")
