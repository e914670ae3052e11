"""Ratios of rows that were not measured side by side: of two runs, or of two machines."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from rresnet.analysis import alike, comparison, frames
from rresnet.analysis.pairing import in_series
from rresnet.analysis.statistics import RATE_DRIFT_LIMIT, Interval, in_order, independent_ratio, log_mean_interval
from rresnet.cell import CELL_COLUMNS

_ONE_MACHINE = (
    "all rows ran on one machine, judging by its name and processor: if one run measured them, use rresnet.speedup; if "
    "they are from two machines with the same name, give the rows of one of them another hostname"
)


def ratio(rows: pd.DataFrame, reference: pd.DataFrame, level: float = 0.95) -> Interval:
    """The ratio of two cells' images a second from ok rows that share no repeat, with its interval.

    Each side's interval is that of its rate, with the drift of a rate (`RATE_DRIFT_LIMIT`); `independent_ratio` of
    `statistics` combines the two.
    """
    one, other = (
        log_mean_interval(in_order(side["images_per_second"], *in_series(side)), level, drift_limit=RATE_DRIFT_LIMIT)
        for side in (rows, reference)
    )
    return independent_ratio(one, other)


def differences(rows: pd.DataFrame, reference: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """What the two sides do not share, as `column: here vs there`."""
    found = []
    for column in (c for c in columns if c in rows):
        one, other = ([str(v) for v in sorted(set(side[column].dropna()))] for side in (rows, reference))
        if one != other and ((one and other) or column == "gpu_name"):
            found.append(f"{column}: {' and '.join(one) or 'none'} vs {' and '.join(other) or 'none'}")
    return found


def speedup_across_machines(
    trials: pd.DataFrame, over: str, reference: object, *, level: float = 0.95, allow: Sequence[str] = ()
) -> pd.DataFrame:
    """How much faster each value of a column is than a reference value that was measured on another machine.

    Like `rresnet.speedup`, but the ratio is of two means that were measured apart, so the interval is wider: drift on
    either machine does not cancel. Rows of one machine are left to `rresnet.speedup`; two machines of the same hostname
    are told apart by their processors and GPUs.

    Args:
        trials: rows of the trials table of several machines, as `rresnet.read` gives them for several folders.
        over: column that is compared, for example `device`.
        reference: the value of that column that the others are compared with.
        level: confidence level of the interval.
        allow: columns in which the two sides may differ all the same, for example `cpu_threads` or `torch_version`. The
            machines themselves may differ (hostname, processor, GPU, operating system, CUDA).

    Returns:
        One row for each value of `over`, setting of the other axes, and pair of machines: the axes, `machine` and
        `reference_machine` (hostnames), `speedup`, `low`, `high` (NaN under 3 repeats on either side), `repeats` (of
        the side that has fewer), `distinguishable`, and in `differs` what the two sides do not share.

    Raises:
        ValueError: there is no such column, no ok row with the reference value or none with another, or no rows may be
            compared.
    """
    trials = frames.checked(trials, ["images_per_second", *alike.AVERAGED])
    allow = [allow] if isinstance(allow, str) else allow
    floors = comparison.floors_by_host(trials)
    ok = comparison.comparable(trials if over == "copy" else trials[trials["copy"] == 0], over, reference)
    matched, free = comparison.matched_axes(ok, over, allow)
    is_reference = ok[over] == reference
    axes = [axis for axis in CELL_COLUMNS if axis != over]
    rows, columns = [], [*axes, *alike.AVERAGED]
    references = list(ok[is_reference].groupby(columns, dropna=False))
    for _, side in ok[~is_reference].groupby([over, *columns], dropna=False, sort=True):
        for _, other in references:
            one, its = side.iloc[0], other.iloc[0]
            if _one_machine(one, its) or not all(frames.same(one[axis], its[axis]) for axis in matched):
                continue
            _refuse_unlike(side, other, allow)
            floor = comparison.floor_of(*(comparison.floor_at(rows, floors) for rows in (side, other)))
            found = replace(ratio(side, other, level), floor=floor)
            rows.append(
                {
                    over: one[over],
                    **{axis: one[axis] for axis in matched},
                    "reference": reference,
                    "machine": one["hostname"],
                    "reference_machine": its["hostname"],
                    "speedup": found.estimate,
                    "low": found.low,
                    "high": found.high,
                    "repeats": found.count,
                    "distinguishable": found.distinguishable,
                    "differs": "; ".join(differences(side, other, [*free, *alike.OF_TWO_MACHINES])),
                }
            )
    if not rows:
        if all(_one_machine(ok.iloc[0], row) for _, row in ok.iterrows()):
            raise ValueError(_ONE_MACHINE)
        raise ValueError(comparison.why_no_pair(ok[~is_reference], ok[is_reference], matched))
    return pd.DataFrame(rows).astype({"low": "float64", "high": "float64"})


def _refuse_unlike(side: pd.DataFrame, other: pd.DataFrame, allow: Sequence[str]) -> None:
    columns = [c for c in alike.COMPARED if c not in (*alike.OF_THE_MACHINE, *allow)]
    for found in differences(side, other, columns):
        column = found.partition(":")[0]
        raise ValueError(
            f"rows with different {column} ({found.partition(': ')[2]}) may not be compared: "
            f'measure them with the same, or give allow=("{column}",)'
        )


def _one_machine(one: "pd.Series[Any]", other: "pd.Series[Any]") -> bool:
    """Whether two rows are of one machine, by its name, and by its processor and GPU as far as both rows know them."""
    known = [column for column in alike.MACHINE if pd.notna(one.get(column)) and pd.notna(other.get(column))]
    return all(frames.same(one[column], other[column]) for column in ("hostname", *known))
