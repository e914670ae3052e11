"""Two result sets matched on configuration: is each setting faster or slower than it was?"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd

from rresnet.analysis import alike, comparison, frames, load, unpaired
from rresnet.analysis.statistics import Interval
from rresnet.cell import CELL_COLUMNS, UsageError
from rresnet.naming import name
from rresnet.terminal import counted, short_hash

Verdict = Literal["better", "worse", "not distinguishable", "too few repeats", "failed", "failed in both", "ok now"]
LEVEL, ANY_BY_CHANCE = 0.95, 0.05  # of each interval; probability that anything is called a regression by chance
PROCESS = ["run_id", "hostname", "process"]  # rows that agree in these are of one process
MOSTLY = 0.5  # a setting mostly fails if a smaller share of its trials ends ok


@dataclass(frozen=True, kw_only=True)
class Change:
    """How a setting on one kind of machine came out in B, compared with A."""

    setting: str
    machine: str
    verdict: Verdict
    ratio: float | None  # images a second in B over those in A; None where either failed
    low: float | None
    high: float | None
    ok: tuple[int, int]  # trials of A and of B that ended ok
    disturbed: tuple[int, int]  # those of them that other work disturbed
    repeats: int  # of the side that has fewer
    processes: int  # likewise
    floor: float | None  # the noise floor of A or B, whichever is larger
    sure: bool = False  # whether it is still worse when all settings are judged at once


@dataclass(frozen=True, kw_only=True)
class Diff:
    """What `compare` found."""

    a: str
    b: str
    changes: tuple[Change, ...]
    only_a: tuple[str, ...]  # settings that B lacks
    only_b: tuple[str, ...]
    differs: tuple[str, ...]  # differences in software and machine, as `column: in A vs in B`

    def regressions(self, share: float) -> list[Change]:
        """Settings that are surely slower, by more than `share` (0.05 is 5 %), or whose verdict is `failed`."""
        return [
            c for c in self.changes if c.verdict == "failed" or (c.sure and c.ratio is not None and c.ratio < 1 - share)
        ]


def read_rows(text: str) -> pd.DataFrame:
    """Read the trials that a text names: `FOLDER`, `FOLDER@RUN_ID` or `FOLDER@COMMIT` (either may be cut short).

    Raises:
        StoreError: there are no results.
        UsageError: there are no trials, or none of that run or commit.
    """
    folder, part = _split(text)
    trials = frames.read(folder).trials
    if trials.empty:
        raise UsageError(f"{folder} holds no trials: run python experiments/compare.py first")
    if not part:
        return trials
    chosen = trials[trials["run_id"].astype(str).str.startswith(part) | _of_commit(trials["git_commit"], part)]
    if chosen.empty:
        raise UsageError(f"no run or commit in {folder} begins with {part!r}; there are: {'; '.join(_runs(trials))}")
    return chosen


def _split(text: str) -> tuple[str, str]:
    """Split into the folder and the run or commit, which has no slash: an @ before a slash is part of the folder."""
    folder, at, part = text.rpartition("@")
    return (text, "") if not at or "/" in part or os.path.isdir(text) else (folder, part)


def _of_commit(commits: "pd.Series[str]", part: str) -> "pd.Series[bool]":
    """Which commits begin with `part`, in full or as printed; with changed code only if so named or no other does."""
    texts = commits.fillna("").astype(str)
    matching = texts.str.startswith(part) | texts.map(short_hash).str.startswith(part)
    unchanged = matching & ~texts.str.contains("-dirty-")
    return unchanged if unchanged.any() and "-" not in part else matching


def _runs(trials: pd.DataFrame) -> list[str]:
    found = []
    for run, commits in trials.groupby("run_id")["git_commit"]:
        hashes = ", ".join(map(short_hash, commits.dropna().unique()))
        found.append(f"{run} (commit {hashes})" if hashes else str(run))
    return found


def compare(a: pd.DataFrame, b: pd.DataFrame, *, names: tuple[str, str] = ("A", "B")) -> Diff:
    """Compare B with A in each configuration that both measured on the same kind of machine.

    Rows of two runs share no repeat, so the ratio is unpaired (`unpaired.ratio`). It is better or worse if its
    interval leaves out 1 and it is beyond the noise floor, if identical cells were measured (`--aa`).

    Args:
        a: rows of the trials table; second copies (`--aa`) only give the noise floor, and probes of `--batch-size auto`
            count only where there is nothing else.
        b: the rows that are compared with them.
        names: what to call the two.

    Raises:
        UsageError: nothing was measured by both, or one side mixes commits or software.
    """
    a, b = (frames.without_probes(rows) for rows in (a, b))
    floors = [comparison.floors_by_host(rows) for rows in (a, b)]
    of_a, of_b = _by_key(a, b), _by_key(b, a)
    both = [key for key in of_a if key in of_b]
    if not both:
        raise UsageError(f"nothing was measured in both {names[0]} and {names[1]}: {_apart(a, b)}")
    for side, named in zip((of_a, of_b), names, strict=True):
        _refuse_mixed([side[key] for key in both], named)
    cells = [rows.iloc[0].to_dict() for side in (of_a, of_b) for rows in side.values()]
    shared_a, shared_b = (pd.concat([side[key] for key in both]) for side in (of_a, of_b))
    changes = {key: _change(of_a[key], of_b[key], cells, floors) for key in both}
    worse = {key: _ok(of_b[key], of_a[key]) for key, change in changes.items() if change.verdict == "worse"}
    sure = _surely_worse(worse, tested=sum(change.low is not None for change in changes.values()))
    return Diff(
        a=names[0],
        b=names[1],
        changes=tuple(replace(change, sure=key in sure) for key, change in changes.items()),
        only_a=tuple(_setting_on_machine(rows, cells) for key, rows in of_a.items() if key not in of_b),
        only_b=tuple(_setting_on_machine(rows, cells) for key, rows in of_b.items() if key not in of_a),
        differs=tuple(unpaired.differences(shared_a, shared_b, alike.OF_TWO_SETS)),
    )


def _by_key(trials: pd.DataFrame, other: pd.DataFrame) -> dict[tuple[Any, ...], pd.DataFrame]:
    """Group the first copies by `alike.MATCHED`.

    The row of a failed trial lacks the data's fingerprint, and that of a killed one the machine too. They are filled in
    from rows on the same device (machine) or of the same data set (fingerprint), if these are all of one kind. If none
    of these ended ok and none holds them, they are taken from the `other` side, so that the setting is compared all the
    same; but never from a machine with another processor.
    """
    rows, others = (side[side["copy"] == 0].astype(dict.fromkeys(alike.MATCHED, object)) for side in (trials, other))
    known = rows["cpu_model"].dropna()
    its = others[others["cpu_model"].isin(known)] if len(known) else others
    _fill_in(alike.MACHINE, rows, its, of="device")
    _fill_in(["dataset_fingerprint"], rows, others, of="dataset")
    groups = rows.groupby(alike.MATCHED, dropna=False, sort=False)
    return {tuple(None if value != value else value for value in key): of_key for key, of_key in groups}


def _fill_in(columns: list[str], rows: pd.DataFrame, others: pd.DataFrame, *, of: str) -> None:
    """Fill in the columns of rows that lack the first of them, as `_by_key` says, from those that agree in `of`."""
    known, lost = rows[columns[0]].notna(), others[~others[of].isin(rows[of][rows["status"] == "ok"])]
    told = [side.dropna(subset=columns[:1]).groupby(of) for side in (lost, rows)]  # their own count more than others'
    kinds = {value: of_value.drop_duplicates(columns) for groups in told for value, of_value in groups}
    for column in columns:
        only = {value: of_value[column].iloc[0] for value, of_value in kinds.items() if len(of_value) == 1}
        rows[column] = rows[column].where(known, rows[of].map(only))


def _refuse_mixed(settings: Iterable[pd.DataFrame], named: str) -> None:
    for rows in settings:
        for column in ("git_commit", "environment_fingerprint"):
            if rows[column].nunique() > 1:
                raise UsageError(
                    f"{named} holds runs with different {column}, which can't be averaged: name one of them as "
                    f"{_split(named)[0]}@RUN_ID or @COMMIT; there are: {'; '.join(_runs(rows))}"
                )


def _change(
    a: pd.DataFrame, b: pd.DataFrame, cells: list[dict[Any, Any]], floors: Sequence[Mapping[tuple[str, str], float]]
) -> Change:
    floor = comparison.floor_of(*map(comparison.floor_at, (a, b), floors))
    ratio, verdict, (ok_a, ok_b) = None, _of_failures(a, b), _ok(a, b)
    if verdict is None:
        ratio = replace(unpaired.ratio(ok_b, ok_a, LEVEL), floor=floor)
        verdict = _of_ratio(ratio)
    return Change(
        setting=_setting(b, cells),
        machine=_machine(b),
        ok=(len(ok_a), len(ok_b)),
        disturbed=(int(load.disturbed(ok_a).sum()), int(load.disturbed(ok_b).sum())),
        verdict=verdict,
        ratio=ratio.estimate if ratio else None,
        low=ratio.low if ratio else None,
        high=ratio.high if ratio else None,
        repeats=ratio.count if ratio else 0,
        processes=min(side.groupby(PROCESS, dropna=False).ngroups for side in (ok_a, ok_b)),
        floor=floor,
    )


def _ok(one: pd.DataFrame, other: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    return one[one["status"] == "ok"], other[other["status"] == "ok"]


def _surely_worse(worse: Mapping[Any, tuple[pd.DataFrame, pd.DataFrame]], tested: int) -> set[Any]:
    """Which of the settings called worse still are when all that were `tested` are judged at once.

    By Hochberg's step-up rule (Biometrika 75, 1988, 800-802), on one side of each interval: the probability that any is
    called worse by chance is at most `ANY_BY_CHANCE`, whether settings are independent or slow down together.
    """
    for left in range(tested - len(worse) + 1, tested + 1):
        level = max(LEVEL, 1 - 2 * ANY_BY_CHANCE / left)
        sure = {key for key, sides in worse.items() if unpaired.ratio(*sides, level).distinguishable}
        if len(sure) > tested - left:
            return sure
    return set()


def _of_failures(a: pd.DataFrame, b: pd.DataFrame) -> Verdict | None:
    """The verdict on a setting of which one side has no ok trial, or which mostly fails only in B; None for others."""
    shares = [float((side["status"] == "ok").mean()) for side in (a, b)]
    if not shares[0]:
        return "ok now" if shares[1] else "failed in both"
    return "failed" if not shares[1] or shares[1] < MOSTLY <= shares[0] else None


def _of_ratio(ratio: Interval) -> Verdict:
    if ratio.distinguishable is None:
        return "too few repeats"
    if not ratio.distinguishable:
        return "not distinguishable"
    return "better" if ratio.estimate > 1 else "worse"


def _setting(rows: pd.DataFrame, cells: list[dict[Any, Any]]) -> str:
    cell: dict[Any, Any] = rows.iloc[0].to_dict()
    return name(cell, cells)


def _machine(rows: pd.DataFrame) -> str:
    gpu, cpu, count = (rows[column].iloc[0] for column in ("gpu_name", "cpu_model", "cpu_count"))
    known = [str(part) for part in (gpu, cpu) if pd.notna(part)]
    return ", ".join([*known, *([counted(int(count), "CPU")] if pd.notna(count) else [])])


def _setting_on_machine(rows: pd.DataFrame, cells: list[dict[Any, Any]]) -> str:
    return f"{_setting(rows, cells)} ({_machine(rows)})"


def _apart(a: pd.DataFrame, b: pd.DataFrame) -> str:
    """Explain which columns keep the two sides from matching, with their values."""
    found = unpaired.differences(a, b, [*CELL_COLUMNS, *alike.MACHINE, "dataset_fingerprint"])
    return f"they differ in {'; '.join(found)}" if found else "no two of their settings agree in everything"
