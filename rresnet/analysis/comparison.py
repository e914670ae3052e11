"""How much faster one value of an axis is than another, all else equal; and how far apart identical cells come out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rresnet.analysis import alike
from rresnet.analysis.frames import checked, same, with_all_axes, without_probes
from rresnet.analysis.pairing import in_series, side_by_side
from rresnet.analysis.ranking import as_written
from rresnet.analysis.statistics import DRIFT_LIMIT, Interval, in_order, log_mean_interval, variance_components
from rresnet.cell import AXES, CELL_COLUMNS, CORES, share_cores


def speedup(
    trials: pd.DataFrame, over: str, reference: object, *, level: float = 0.95, allow: Sequence[str] = ()
) -> pd.DataFrame:
    """How much faster each value of a column is than a reference value, all else equal.

    Trials are paired within one run, machine and repeat, where they ran right after one another. They are not paired if
    two commands measured them more than ten minutes apart, because the run was interrupted or a trial tried again. The
    interval is over repeats (see `rresnet.analysis.statistics`).

    When `over` is `device` or `recipe`, axes that a run left to the recipes may differ between the two sides; `differs`
    names them. Of a ladder, only the two ends are then compared. When `over` is `execution`, that holds for `kernels`.
    If `trials` hold identical cells (`--aa`), their ratios give the noise floor of their machine, and a speedup below
    it is not distinguishable, whatever its interval says.

    Args:
        trials: rows of the trials table; only those with status ok enter, and no probes of `--batch-size auto`.
        over: column that is compared, for example `device`, `recipe` or `precision`.
        reference: the value of that column that the others are compared with.
        level: confidence level of the interval.
        allow: columns in which the two sides may differ all the same, for example `cpu_threads` or `torch_version`.

    Returns:
        One row for each value of `over` and setting of the other axes. Its columns: the axes (null where the two sides
        differ); `git_commit` if there are runs of several commits of this package, which are never averaged; `speedup`
        (ratio of images a second); `low` and `high` (NaN under 3 pairs); `pairs`; `distinguishable` (the interval
        leaves out 1 and the speedup is beyond the noise floor of its devices; None without an interval, so pick rows
        out with `distinguishable.eq(True)`); `differs`; and
        what one repeat and one process add to the scatter of the log ratio (`repeat_sd`, `process_sd`; null where that
        can't be told).

    Raises:
        ValueError: there is no such column, no ok row with the reference value or none with another, or the rows may
            not be compared.
    """
    allow = [allow] if isinstance(allow, str) else allow
    pairs, matched = _pairs(comparable(trials, over, reference), over, reference, allow)
    axes = [axis for axis in CELL_COLUMNS if axis != over]
    allowed = [*allow, *(["model_code"] if over == "model" else [])]
    unlike = [c for c in alike.COMPARED if c not in allowed and len(_values(pairs, c)) > 1]
    floors = {} if over == "copy" else floors_by_host(trials)
    # Identical cells do the same work, so the machine's drift can't move their ratio.
    drift_limit = 0.0 if over == "copy" else DRIFT_LIMIT
    ratios = (pairs["images_per_second"] / pairs["images_per_second_reference"]).to_numpy()
    series = ratios, *in_series(pairs)
    rows: list[dict[str, Any]] = []
    for at in _of_the_same_two(pairs, over, axes):
        for column in unlike:
            _refuse_unlike(pairs.iloc[at], column)
        in_time = in_order(*(of[at] for of in series))
        interval = log_mean_interval(in_time, level, drift_limit=drift_limit)
        components = variance_components(in_time)
        first, sides = pairs.iloc[at[0]], (floor_at(pairs.iloc[at], floors, f"device{of}") for of in ("", "_reference"))
        differs = [axis for axis in axes if not same(first[axis], first[f"{axis}_reference"])]
        rows.append(
            {
                over: first[over],
                **{axis: None if axis in differs else first[axis] for axis in axes},
                "git_commit": first["git_commit"],
                "reference": reference,
                "speedup": interval.estimate,
                "low": interval.low,
                "high": interval.high,
                "pairs": interval.count,
                "distinguishable": replace(interval, floor=floor_of(*sides)).distinguishable,
                "differs": "; ".join(f"{axis}: {first[axis]} vs {first[f'{axis}_reference']}" for axis in differs),
                "repeat_sd": components.repeat_sd,
                "process_sd": components.process_sd,
            }
        )
    needless = [c for c in (*axes, "git_commit") if c not in matched and len({str(row[c]) for row in rows}) == 1]
    return pd.DataFrame(rows).drop(columns=needless).astype({"low": "float64", "high": "float64"})


def _pairs(ok: pd.DataFrame, over: str, reference: object, allow: Sequence[str]) -> tuple[pd.DataFrame, frozenset[str]]:
    """The pairs within each run and machine, and the axes in which those of any of them must be equal."""
    if unknown := [column for column in allow if column not in (*ok, *alike.COMPARED)]:
        raise ValueError(f"allow must name columns of the trials: there is no {', '.join(unknown)}")
    by_run = ok.groupby(["run_id", "hostname"], sort=False, dropna=False)
    runs = [(of_run, matched_axes(of_run, over, allow)[0]) for _, of_run in by_run]
    matched = frozenset(axis for _, of_run in runs for axis in of_run)
    met = pd.concat([_paired(of_run, over, reference, axes) for of_run, axes in runs], ignore_index=True)
    pairs = side_by_side(met).reset_index(drop=True)
    if not pairs.empty:
        return pairs, matched
    if not met.empty:
        raise ValueError(
            "no rows to compare: they are of two commits, or two commands measured them more than ten minutes apart; "
            "use --fresh"
        )
    is_reference = ok[over] == reference
    columns = [*alike.PAIRED, *(axis for axis in CELL_COLUMNS if axis in matched)]
    raise ValueError(why_no_pair(ok[~is_reference], ok[is_reference], columns))


def floor_at(rows: pd.DataFrame, floors: Mapping[tuple[str, str], float], device: str = "device") -> float | None:
    """The noise floor of the device of these rows (or pairs, in that column), on the noisiest of their machines."""
    return floor_of(*(floors.get(where) for where in set(zip(rows["hostname"].fillna(""), rows[device], strict=True))))


def _paired(of_run: pd.DataFrame, over: str, reference: object, matched: Sequence[str]) -> pd.DataFrame:
    """Pair the rows of one run and machine with the reference's rows of the same repeat that agree in `matched`.

    Every column appears twice: the row's, and the reference's with the suffix `_reference`.
    """
    keyed = of_run.assign(**{f"{axis} matched": of_run[axis] for axis in matched})
    is_reference = keyed[over] == reference
    keys = [*alike.PAIRED, *(f"{axis} matched" for axis in matched)]
    return keyed[~is_reference].merge(keyed[is_reference], on=keys, suffixes=("", "_reference"))


def _of_the_same_two(pairs: pd.DataFrame, over: str, axes: Sequence[str]) -> list[NDArray[np.intp]]:
    """Group the positions of pairs that are of the same two settings and the same code.

    On either side, the pairs of a group agree in every axis, even in those that may differ between the sides.
    """
    columns = [over, *axes, *(f"{axis}_reference" for axis in axes), "git_commit", "git_commit_reference"]
    group = pairs.groupby(columns, dropna=False, sort=True).ngroup().to_numpy()
    return [np.flatnonzero(group == number) for number in range(len(set(group)))]


def comparable(trials: pd.DataFrame, over: str, reference: object) -> pd.DataFrame:
    """The ok rows, no probes, nor a ladder's inner rungs for `device` or `recipe`; checks that they can be compared.

    Raises:
        ValueError: there is no such column, no ok row with the reference value or none with another, or a row is there
            twice.
    """
    if over not in CELL_COLUMNS:
        raise ValueError(f"over must be one of {', '.join(CELL_COLUMNS)}, got {over!r}")
    rows = without_probes(checked(trials, ["images_per_second"]))
    if "git_commit" not in rows:
        rows = rows.assign(git_commit=None)
    if over in ("device", "recipe"):
        rows = _without_rungs(rows)
    ok = rows[rows["status"] == "ok"]
    values = sorted(ok[over].dropna().unique().tolist())
    if reference not in values:
        raise ValueError(f"no ok rows with {over} = {reference!r}; there are: {', '.join(map(str, values)) or 'none'}")
    if (ok[over] == reference).all():
        raise ValueError(f"nothing to compare: {reference!r} is the only {over} with ok rows")
    return ok


def _without_rungs(trials: pd.DataFrame) -> pd.DataFrame:
    """Drop the rungs between the two ends of a ladder: they bear the name of the blog's recipe but are not it."""
    is_ladder = trials["experiment"] == "ladder" if "experiment" in trials else False
    return trials[~(is_ladder & (trials["recipe"] == "blog")) | as_written(trials)]


def matched_axes(ok: pd.DataFrame, over: str, allow: Sequence[str]) -> tuple[list[str], list[str]]:
    """Axes that must be equal in a pair, and those that may differ: allowed by name, or resolved by a recipe.

    An axis that takes several values for one recipe on one device was asked for, not resolved: it must be equal.
    Kernels are resolved between executions as well: a compiled step never has fused ones.
    """
    axes = [c for c in CELL_COLUMNS if c != over and c not in allow]
    allowed = [c for c in CELL_COLUMNS if c in allow and c != over]
    if over == "num_workers" and share_cores(zip(*(ok[axis] for axis in CORES), strict=True)):
        axes, allowed = [c for c in axes if c != "cpu_threads"], ["cpu_threads", *allowed]
    if over not in ("device", "recipe", "execution"):
        return axes, allowed
    asked = ["run_id", "hostname", *(c for c in CELL_COLUMNS if c not in AXES)]
    counts = ok.groupby(asked, dropna=False)[list(AXES)].nunique(dropna=False).max()
    # Which kernels a recipe has depends on the execution, too.
    counts["kernels"] = ok.groupby([*asked, "execution"], dropna=False)["kernels"].nunique().max()
    free = [c for c in (("kernels",) if over == "execution" else AXES) if not counts[c] > 1]
    return [c for c in axes if c not in free], [*free, *(c for c in allowed if c not in free)]


def why_no_pair(side: pd.DataFrame, reference: pd.DataFrame, columns: Sequence[str]) -> str:
    """Explain which of the columns keep the two sides from being paired, with their values."""
    apart = [
        f"{c} ({', '.join(map(str, side[c].unique()))} against {', '.join(map(str, reference[c].unique()))})"
        for c in columns
        if not set(map(str, side[c])) & set(map(str, reference[c]))
    ]
    reason = f"they differ in {'; '.join(apart)}" if apart else "no two of them agree in everything else"
    if any(one.startswith("run_id ") for one in apart):
        reason += " (of two machines: rresnet.speedup_across_machines, of two runs of the same settings: rresnet diff)"
    return f"no rows to compare: {reason}. To let axes differ, name them: allow=(...)"


def _values(pairs: pd.DataFrame, column: str) -> list[Any]:
    """The values that a column has on either side."""
    both = [pairs[c] for c in (column, f"{column}_reference") if c in pairs]
    return list(pd.concat(both).dropna().unique()) if both else []


def _refuse_unlike(pairs: pd.DataFrame, column: str) -> None:
    """Raise ValueError if one number would be computed from rows of unlike data, machines or software."""
    kinds = _values(pairs, column)
    if len(kinds) > 1:
        raise ValueError(
            f"rows with different {column} ({' and '.join(map(str, kinds))}) may not be compared or averaged: "
            f'choose the rows of one, or give allow=("{column}",)'
        )


def noise_floors(trials: pd.DataFrame) -> dict[str, float]:
    """How far apart identical cells came out, for each device that has such cells, as a share (0.02 is 2 %).

    It is the larger of the largest ratio seen and the root mean square of the half-widths of their intervals; of
    several machines, that of the noisiest.
    """
    found = floors_by_host(trials)
    return {device: max(floor for (_, of), floor in found.items() if of == device) for _, device in sorted(found)}


def floors_by_host(trials: pd.DataFrame) -> dict[tuple[str, str], float]:
    """The noise floor of each machine, by its name ("" where that is not known), and device."""
    rows = with_all_axes(trials)
    by_host = rows.groupby(rows["hostname"].fillna(""))
    return {(str(host), device): floor for host, rows in by_host for device, floor in _noise_floors(rows).items()}


def _noise_floors(rows: pd.DataFrame) -> dict[str, float]:
    ok = rows[rows["status"] == "ok"]
    if not {0, 1} <= set(ok["copy"]):
        return {}
    try:
        ratios = speedup(ok, over="copy", reference=0, allow=alike.COMPARED)
    except ValueError:  # never both in one repeat, so far
        return {}
    return {str(device): _noise_floor(of_device) for device, of_device in ratios.groupby("device")}


def _noise_floor(ratios: pd.DataFrame) -> float:
    logs = [abs(math.log(value)) for value in ratios["speedup"]]
    bounds = ratios.dropna(subset=["low"])
    halves = [math.log(high / low) / 2 for low, high in zip(bounds["low"], bounds["high"], strict=True)]
    scatter = math.sqrt(sum(h**2 for h in halves) / len(halves)) if halves else 0.0
    return math.expm1(max(*logs, scatter))


def with_floor(ratio: Interval | None, floors: Mapping[str, float], *cells: Mapping[Any, Any]) -> Interval | None:
    """The ratio of two cells of `rates.by_cell`, if there is one, with the noise floor of their devices."""
    return ratio and replace(ratio, floor=floor_of(*(floors.get(cell["device"]) for cell in cells)))


def floor_of(*sides: float | None) -> float | None:
    """The noise floor of a ratio of two sides: that of the noisier one; None if it was measured on neither."""
    return max((floor for floor in sides if floor is not None), default=None)
