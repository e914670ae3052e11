"""Has a series of times settled? The Mann-Kendall trend test, exact for the short series of a warm-up."""

import functools
import math
from collections.abc import Sequence

WARMUP_LEVEL = 1 / 6  # the smallest that three values allow: all three falling
UNSTEADY_LEVEL = 0.01
UNSTEADY_CHANGE = 0.05  # a trend that changes less than this over a trial is not worth a flag
FEWEST_VALUES = 3
MOST_VALUES = 200  # in which a trend is looked for: that takes all pairs of them


def falls(values: Sequence[float]) -> bool:
    """Whether `values` still fall: the one-sided Mann-Kendall test rejects "no trend" at `WARMUP_LEVEL`.

    Mann (1945), Kendall (1975). Fewer than `FEWEST_VALUES` can't tell, and count as falling.
    """
    return len(values) < FEWEST_VALUES or _chance_of_at_most(kendall_score(values), len(values)) <= WARMUP_LEVEL


def latter_half(values: Sequence[float]) -> Sequence[float]:
    """The values that a warm-up is judged by: the latter half of those after the first, or `FEWEST_VALUES` of them."""
    later = values[1:]
    return later[-max(FEWEST_VALUES, len(later) // 2) :]


def trends(values: Sequence[float]) -> bool:
    """Whether `values` rise or fall, by a two-sided test at `UNSTEADY_LEVEL` and by more than `UNSTEADY_CHANGE`.

    The change is the median of the pairwise slopes (Theil 1950, Sen 1968) over the length of the series.
    """
    if len(values) < FEWEST_VALUES:
        return False
    values = _thinned(values)
    chance = 2 * _chance_of_at_most(-abs(kendall_score(values)), len(values))
    slopes = sorted((b - a) / (j - i) for i, a in enumerate(values) for j, b in enumerate(values) if j > i)
    change = abs(slopes[len(slopes) // 2]) * (len(values) - 1)
    return chance <= UNSTEADY_LEVEL and change > UNSTEADY_CHANGE * sorted(values)[len(values) // 2]


def _thinned(values: Sequence[float]) -> Sequence[float]:
    """At most `MOST_VALUES` means of equally many neighbours each; a trend shows in them as in the values."""
    each = -(-len(values) // MOST_VALUES)
    return [sum(values[i : i + each]) / each for i in range(0, len(values) - each + 1, each)]


def kendall_score(values: Sequence[float]) -> int:
    """Rising pairs less falling pairs; Kendall's S."""
    return sum((b > a) - (b < a) for i, a in enumerate(values) for b in values[i + 1 :])


def _chance_of_at_most(score: int, count: int) -> float:
    """P(S <= score) of `count` values in random order; beyond 30 values by the normal approximation (Kendall 1975)."""
    pairs = count * (count - 1) // 2
    if count > 30:
        sd = math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
        return 0.5 * math.erfc(-(score + 1) / sd / math.sqrt(2))
    rising = (score + pairs) // 2
    return sum(_orders(count)[: rising + 1]) / math.factorial(count)


@functools.cache
def _orders(count: int) -> list[int]:
    """How many orders of `count` values have 0, 1, 2, ... rising pairs (the Mahonian numbers)."""
    if count <= 1:
        return [1]
    before = _orders(count - 1)
    return [sum(before[max(0, k - count + 1) : k + 1]) for k in range(len(before) + count - 1)]
