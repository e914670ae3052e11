"""`--batch-size auto`: the largest batch that fits and the fastest; every probe is a trial with its row."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from rresnet import naming
from rresnet.analysis import load
from rresnet.cell import CELL_COLUMNS, Cell, Trial, UsageError, stable_hash
from rresnet.config import AUTO, Settings
from rresnet.experiments.growth import rows_so_far
from rresnet.runner.sweep import Sweep
from rresnet.terminal import counted, number

FIRST_SIZE = 16
STEP_SECONDS = 10.0  # no size is tried whose step is expected to take longer
AHEAD = 3  # doublings that are tried in one process before deciding on the next
BY_CHANCE = ("error", "killed")  # how a probe may end for reasons that have nothing to do with its size
FINENESS = 8  # the largest that fits is known when one that does not is at most an eighth of it larger

_Probes = dict[str, dict[int, float | None]]  # series -> size -> seconds of a step, or None where it did not run
_APART = ("batch_size", "epochs", "copy")  # cells that differ in nothing else are one series of probes


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What the probes found."""

    sizes: tuple[int, ...]  # each series' fastest and largest
    largest: Mapping[str, int]  # series -> the largest that fits
    summary: Sequence[str]  # the same in words

    def fits(self, cell: Cell) -> bool:
        """Whether a cell of that size runs."""
        return cell.batch_size <= self.largest.get(_series(vars(cell)), 0)


def first(settings: Settings, *, most: int = FIRST_SIZE) -> Settings:
    """The settings of the first probes: one repeat of a small size.

    Of what is to be run again, only failed probes are: others could choose other sizes, and thereby another run.

    Args:
        settings: with `batch_size` auto.
        most: the largest size there are images for.
    """
    return replace(
        settings,
        batch_size=(min(FIRST_SIZE, most),),
        repeats=1,
        processes=1,
        epochs=None,
        aa=False,
        profile=False,
        save_model=False,
        retry="failed" if settings.retry == "failed" else None,
    )


def plan_of(settings: Settings) -> str:
    """Say what follows the first probes."""
    return (
        f"These are the first probes of --batch-size {AUTO}. Sizes are doubled until one does not fit, its step would "
        f"take over {STEP_SECONDS:g} s, or there are no more images; the fastest and the largest size that fit are "
        f"then measured in {counted(settings.repeats_planned, 'repeat')}."
    )


def next_size(probes: Mapping[int, float | None], most: int) -> int | None:
    """The size to probe next: doubled while it fits, halved until it does, then in between. Pure.

    Args:
        probes: size -> seconds of a step, or None where it did not run.
        most: the largest size there are images for.

    Returns:
        The size, or None when the largest that fits is known, or none does, or a larger step would take too long.
    """
    fits = [size for size, seconds in probes.items() if seconds is not None]
    if not fits:
        smallest = min(probes, default=2 * min(FIRST_SIZE, most))
        return smallest // 2 or None
    largest = max(fits)
    failed = [size for size, seconds in probes.items() if seconds is None and size > largest]
    if not failed:
        wanted = min(2 * largest, most)
        too_slow = (probes[largest] or 0.0) * wanted / largest > STEP_SECONDS
        return None if wanted == largest or too_slow else wanted
    gap = min(failed) - largest
    return None if gap <= max(1, largest // FINENESS) else largest + gap // 2


def next_sizes(probes: Mapping[int, float | None], most: int) -> list[int]:
    """The sizes to probe next in one process: several doublings at once, as long as nothing has failed. Pure."""
    assumed, sizes = dict(probes), list[int]()
    while len(sizes) < AHEAD and (size := next_size(assumed, most)) is not None:
        sizes.append(size)
        known = [(of_size, seconds) for of_size, seconds in assumed.items() if seconds is not None]
        if not known or len(known) < len(assumed):
            break  # halving and closing in: each size depends on how the one before went
        largest, seconds = max(known)
        assumed[size] = seconds * size / largest
    return sizes


def probe(sweep: Sweep, cells: Sequence[Cell], again: Collection[str] = (), *, most: int) -> None:
    """Probe size after size of every series, each in its turn, until all are known.

    `cells` has one cell of each series, with its first size; `most` is the largest size there are images for. `again`
    are ids of trials that have a row and are to be run once more; those of a first size already have been. A probe is
    repeated once if it may have failed by chance, or if it was too slow for a larger size and other work disturbed it.
    """
    rows = rows_so_far(sweep)
    probes = _probes(rows)
    known = [
        _trial(cell, size) for cell in cells for size in probes.get(_series(vars(cell)), {}) if size != cell.batch_size
    ]
    wanted, why = [trial for trial in known if trial.trial_id in again], ""
    if not wanted:
        wanted, why = _wanted(rows, cells, most)
    while wanted:
        sizes = sorted({trial.cell.batch_size for trial in wanted})
        named = f"Probing batch size{'s' if len(sizes) > 1 else ''} {', '.join(map(str, sizes))}{why}"
        sweep.progress.more(len(wanted), named)
        sweep.execute(sorted(wanted, key=lambda trial: trial.cell.batch_size))
        wanted, why = _wanted(rows_so_far(sweep), cells, most)


def _wanted(rows: pd.DataFrame, cells: Sequence[Cell], most: int) -> tuple[list[Trial], str]:
    """The trials that come next, and why if they are repeated."""
    if failed := _failed_once(rows, cells):
        return failed, " again, in case it was chance that one failed"
    if following := _next(_probes(rows), cells, most):
        return following, ""
    return _doubtful(rows, cells, most), " again, since other work disturbed it"


def _failed_once(rows: pd.DataFrame, cells: Sequence[Cell]) -> list[Trial]:
    failed = _probes(rows[rows["status"].isin(BY_CHANCE) & (rows["attempt"] == 1)])
    return [_trial(cell, size) for cell in cells for size in failed.get(_series(vars(cell)), {})]


def _next(probes: _Probes, cells: Sequence[Cell], most: int) -> list[Trial]:
    return [
        _trial(cell, size)
        for cell in cells
        for size in next_sizes(probes.get(_series(vars(cell)), {}), most // cell.num_workers)
    ]


def _doubtful(rows: pd.DataFrame, cells: Sequence[Cell], most: int) -> list[Trial]:
    """The largest probe of each series, if it ran, was disturbed, has not been repeated and need not be the last."""
    probes, disturbed = _probes(rows), _probes(rows[load.disturbed(rows) & (rows["attempt"] == 1)])
    found = []
    for cell in cells:
        series = _series(vars(cell))
        largest = max(probes.get(series, {}), default=0)
        if disturbed.get(series, {}).get(largest) is not None and largest < most // cell.num_workers:
            found.append(_trial(cell, largest))
    return found


def _trial(cell: Cell, size: int) -> Trial:
    return Trial(cell=replace(cell, batch_size=size), repeat=0, process=0)


def result(trials: pd.DataFrame, *, most: int) -> SearchResult:
    """Evaluate the probes' rows. Raises UsageError if no size runs."""
    sizes, largest, summary = set[int](), {}, []
    probes: list[dict[Any, Any]] = trials.to_dict("records")
    for series, rows in trials.groupby(pd.Series([_series(row) for row in probes], trials.index), sort=False):
        one, ok = rows.iloc[0].to_dict(), rows[rows["status"] == "ok"]
        name = naming.name(one, probes, sized=False)
        if ok.empty:
            last = rows.iloc[-1]
            reason, *_ = str(last["error_message"]).splitlines()
            summary.append(
                f"no batch size of {name} runs (batch {last['batch_size']} ended {last['status']}: {reason})"
            )
            continue
        best = ok.sort_values("images_per_second").iloc[-1]
        top = ok.sort_values("batch_size").iloc[-1]
        failed = rows[(rows["status"] != "ok") & (rows["batch_size"] > top["batch_size"])].sort_values("batch_size")
        if len(failed):
            worst = failed.iloc[0]
            why = f"{worst['batch_size']} ended {worst['status']}"
        elif top["batch_size"] >= most // one["num_workers"]:
            why = "the data set has no more images"
        else:
            why = f"a step of twice as many images would take over {STEP_SECONDS:g} s, and was not tried"
        disturbed = int(load.disturbed(ok).sum())
        doubt = f"; other work disturbed {disturbed} of them, so a larger one may do" if disturbed else ""
        summary.append(
            f"{name}: the largest batch that ran is {top['batch_size']} ({why}); the fastest of {len(ok)}, by "
            f"one trial each, is {best['batch_size']} with {number(best['images_per_second'])} images/s{doubt}"
        )
        largest[str(series)] = int(top["batch_size"])
        sizes |= {int(best["batch_size"]), int(top["batch_size"])}
    if not sizes:
        small = (trials["status"] == "out_of_memory").any()
        todo = "give a smaller --model or --image-size" if small else "mend that, then add --retry failed"
        raise UsageError(f"--batch-size {AUTO}: {'; '.join(summary)}; {todo}")
    return SearchResult(sizes=tuple(sorted(sizes)), largest=largest, summary=summary)


def _probes(trials: pd.DataFrame) -> _Probes:
    probes: _Probes = {}
    for row in trials.to_dict("records"):
        of_series = probes.setdefault(_series(row), {})
        of_series[row["batch_size"]] = row["step_seconds"] if row["status"] == "ok" else None
    return probes


def _series(values: Mapping[Any, Any]) -> str:
    return stable_hash([_known(values[axis]) for axis in CELL_COLUMNS if axis not in _APART])


def _known(value: Any) -> str:
    """One text for a cell's value and its row's: tables hold a missing one as NaN, and whole numbers then as floats."""
    if pd.isna(value):
        return "None"
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)
