"""The candidate intervals that were compared.

Each takes log ratios of shape (draws, repeats) in order of time, and the number of processes, which took equally many
consecutive repeats each. Each returns the centres and half-widths of 95 % intervals, one per draw.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rresnet.analysis import statistics

Array = NDArray[np.float64]
Candidate = Callable[[Array, int], tuple[Array, Array]]
Z = float(stats.norm.ppf(0.975))


def t(freedom: float) -> float:
    return float(stats.t.ppf(0.975, freedom))


def plain(x: Array, processes: int) -> tuple[Array, Array]:
    """The textbook's interval: repeats as if independent."""
    count = x.shape[1]
    return x.mean(axis=1), t(count - 1) * x.std(axis=1, ddof=1) / np.sqrt(count)


def batches(x: Array, number: int) -> tuple[Array, Array]:
    """Means of consecutive batches as the unit (with processes as batches: Kalibera and Jones 2013)."""
    means = np.stack([b.mean(axis=1) for b in np.array_split(x, number, axis=1)], axis=1)
    return x.mean(axis=1), t(number - 1) * means.std(axis=1, ddof=1) / np.sqrt(number)


def wider(x: Array, processes: int) -> tuple[Array, Array]:
    """The wider of the plain t and the process means."""
    return x.mean(axis=1), np.maximum(plain(x, processes)[1], batches(x, processes)[1])


def fixed_b(x: Array, processes: int, b: float = 0.5) -> tuple[Array, Array]:
    """Bartlett kernel over half the run, critical value from Kiefer and Vogelsang (2005), table 1."""
    count = x.shape[1]
    lag = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
    centred = x - x.mean(axis=1, keepdims=True)
    variance = ((centred @ np.maximum(0, 1 - lag / (b * count))) * centred).sum(axis=1) / count
    return x.mean(axis=1), (1.96 + 2.9694 * b + 0.416 * b**2 - 0.5324 * b**3) * np.sqrt(variance / count)


def cosines(x: Array, processes: int) -> tuple[Array, Array]:
    """The chosen interval without its allowance for unseen drift."""
    return x.mean(axis=1), statistics.half_width(x, processes, drift_limit=0.0)


def effective_size(x: Array, processes: int) -> tuple[Array, Array]:
    """Student's t with the effective number of repeats of an AR(1), bias corrected (Marriott and Pope 1954)."""
    count = x.shape[1]
    centred = x - x.mean(axis=1, keepdims=True)
    r = (centred[:, 1:] * centred[:, :-1]).sum(axis=1) / (centred**2).sum(axis=1)
    r = np.clip(r + (1 + 3 * r) / count, 0, 0.95)
    size = np.clip(count * (1 - r) / (1 + r), 2, count)
    return x.mean(axis=1), stats.t.ppf(0.975, size - 1) * x.std(axis=1, ddof=1) / np.sqrt(size)


TAUS, DRIFTS = (2, 4, 8, 16, 32, 64), (0.1, 0.2, 0.5, 1.0, 2.0)
Fit = tuple[Array, Array, Array, Array, Array]


def reml(x: Array, processes: int = 1, process_variances: tuple[float, ...] = (0.0,)) -> Fit:
    """Noise + forgetful drift (AR(1)) + process effects by restricted likelihood on a grid.

    Returns tau and the variances of noise, drift, process and mean: the likeliest, for each draw.
    """
    count = x.shape[1]
    lag = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
    of_process = np.repeat(np.arange(processes), count // processes)
    same = np.equal.outer(of_process, of_process)
    best = np.full(len(x), -np.inf)
    found = np.zeros((5, len(x)))
    grid = [(2, 0.0), *((tau, drift) for tau in TAUS for drift in DRIFTS)]
    for tau, drift in grid:
        for process in process_variances:
            v = np.eye(count) + drift * np.exp(-lag / tau) + process * same
            inverse = np.linalg.inv(v)
            ones = inverse.sum()
            projection = inverse - np.outer(inverse.sum(axis=1), inverse.sum(axis=0)) / ones
            scale = ((x @ projection) * x).sum(axis=1) / (count - 1)
            likelihood = -0.5 * (np.linalg.slogdet(v)[1] + np.log(ones) + (count - 1) * np.log(scale))
            better = likelihood > best
            best = np.where(better, likelihood, best)
            values = [np.full(len(x), tau), scale, drift * scale, process * scale, scale * v.mean()]
            found = np.where(better, np.array(values), found)
    return found[0], found[1], found[2], found[3], found[4]


def random_effects(x: Array, processes: int) -> tuple[Array, Array]:
    """The mean with its variance under the likeliest noise + AR(1) + process effects."""
    return x.mean(axis=1), t(x.shape[1] - 1) * np.sqrt(reml(x, processes, (0.0, 0.25, 1.0))[4])


def fixed_model(x: Array, processes: int, drift: float = 1.0, tau: float = 30.0) -> tuple[Array, Array]:
    """Exact t where drift (as large as the noise, forgotten in 30 repeats) is known up to the scale."""
    count = x.shape[1]
    v = np.eye(count) + drift * np.exp(-np.abs(np.subtract.outer(np.arange(count), np.arange(count))) / tau)
    inverse = np.linalg.inv(v)
    projection = inverse - np.outer(inverse.sum(axis=1), inverse.sum(axis=0)) / inverse.sum()
    scale = ((x @ projection) * x).sum(axis=1) / (count - 1)
    return x.mean(axis=1), t(count - 1) * np.sqrt(scale * v.mean())


def median(x: Array, processes: int) -> tuple[Array, Array]:
    """The median with an interval of order statistics, of at least 95 % for independent repeats; its half is shown."""
    count = x.shape[1]
    rank = max(int(stats.binom.ppf(0.025, count, 0.5)) - 1, 0)
    ordered = np.sort(x, axis=1)
    low, high = ordered[:, rank], ordered[:, count - 1 - rank]
    return (low + high) / 2, (high - low) / 2


def trimmed(x: Array, processes: int, share: float = 0.2) -> tuple[Array, Array]:
    """20 % trimmed mean with the winsorised t (Tukey and McLaughlin 1963)."""
    count = x.shape[1]
    cut = int(share * count)
    ordered = np.sort(x, axis=1)
    kept = ordered[:, cut : count - cut]
    spread = np.clip(x, kept[:, :1], kept[:, -1:]).std(axis=1, ddof=1)
    return kept.mean(axis=1), t(count - 2 * cut - 1) * spread / ((1 - 2 * cut / count) * np.sqrt(count))


def huber(x: Array, processes: int, bend: float = 1.345) -> tuple[Array, Array]:
    """Huber's centre (scale: the median deviation) with its sandwich error."""
    centre = np.median(x, axis=1, keepdims=True)
    scale = 1.4826 * np.median(np.abs(x - centre), axis=1, keepdims=True) + 1e-12
    for _ in range(20):
        weight = np.minimum(1, bend * scale / (np.abs(x - centre) + 1e-12))
        centre = (weight * x).sum(axis=1, keepdims=True) / weight.sum(axis=1, keepdims=True)
    pull = np.clip(x - centre, -bend * scale, bend * scale)
    inside = np.maximum((np.abs(x - centre) < bend * scale).mean(axis=1), 0.5)
    count = x.shape[1]
    return centre[:, 0], t(count - 1) * np.sqrt((pull**2).sum(axis=1) / (count - 1) / count) / inside


def allowance(x: Array, per_scatter: float, limit: float) -> Array:
    """Half-width for drift that a run can't see, as in `rresnet.analysis.statistics` but with other constants."""
    unseen = np.minimum(per_scatter * x.std(axis=1, ddof=1), limit)
    return np.asarray(Z * unseen * np.sqrt(statistics.drift_share(x.shape[1])))


def allowed(base: Candidate, per_scatter: float, limit: float) -> Candidate:
    """A candidate widened by the allowance."""

    def widened(x: Array, processes: int) -> tuple[Array, Array]:
        centre, half = base(x, processes)
        return centre, np.hypot(half, allowance(x, per_scatter, limit))

    return widened


def chosen(x: Array, processes: int) -> tuple[Array, Array]:
    """What rresnet reports."""
    return x.mean(axis=1), statistics.half_width(x, processes)


PER_SCATTER, LIMIT = statistics.DRIFT_PER_SCATTER, statistics.DRIFT_LIMIT
CANDIDATES: dict[str, Candidate] = {
    "plain t": plain,
    "median, order statistics": median,
    "trimmed mean 20 %": trimmed,
    "Huber": huber,
    "AR(1) effective size": effective_size,
    "REML, process + AR(1)": random_effects,
    "process means": batches,
    "batch means, 4": lambda x, processes: batches(x, 4),
    "wider of t, process means": wider,
    "fixed-b Bartlett 0.5": fixed_b,
    "cosines": cosines,
    "known drift model": fixed_model,
    "t + allowance of 6 %": allowed(plain, PER_SCATTER, 0.06),
    "cosines + relative only": allowed(cosines, PER_SCATTER, np.inf),
    "cosines + absolute only": allowed(cosines, np.inf, LIMIT),
    "cosines + allowance": chosen,
}
CHOSEN = "cosines + allowance"
