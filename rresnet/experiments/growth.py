"""More repeats than planned, until the intervals are tight enough (`--target-interval`)."""

import itertools
import time
from collections.abc import Collection, Sequence

import pandas as pd

from rresnet import grid
from rresnet.analysis import frames, ranking
from rresnet.analysis.statistics import MINIMUM_REPEATS, MOST_REPEATS, repeats_needed
from rresnet.cell import Cell
from rresnet.config import Settings
from rresnet.runner.sweep import Sweep
from rresnet.terminal import percent


def grow(sweep: Sweep, cells: Sequence[Cell], again: Collection[str], *, settings: Settings, began: float) -> None:
    """Measure extensions, each in a fresh process, until every speedup is known well enough or time is up.

    An extension that an interrupted run has begun is completed first. `again` are ids of trials that have a row and are
    to be run once more, whatever the time; `began` is when the run began, by `time.monotonic`.
    """
    assert settings.target_interval is not None
    target, last_seconds, left = settings.target_interval, 0.0, set(again)
    for extension in itertools.count():
        rows = rows_so_far(sweep)
        trials = grid.more(
            cells, extension, repeats=settings.repeats_planned, processes=settings.processes_planned, seed=settings.seed
        )
        recorded = set(rows["trial_id"])
        todo = [trial for trial in trials if trial.trial_id not in recorded - left]
        if not todo:
            continue
        asked = left & {trial.trial_id for trial in todo}
        left -= asked
        begun = any(trial.trial_id in recorded for trial in trials)
        widest = ranking.widest(rows)
        enough = widest[0] <= target if widest else rows["repeat"].nunique() >= MINIMUM_REPEATS
        if enough and not begun:
            if not widest:
                sweep.progress.note("--target-interval adds nothing: no two settings have a speedup to know better")
            return
        told = _widths(widest[0], target) if widest else "No interval yet"
        if time.monotonic() - began + last_seconds > settings.max_minutes * 60 and not asked:
            needed = repeats_needed(widest[1], target, in_more_processes=True) if widest else None
            would = f"about {needed} repeats would do" if needed else f"not even {MOST_REPEATS:,} repeats would do"
            sweep.progress.note(f"{told}: {would}; --max-minutes {settings.max_minutes:g} is used up")
            return
        sweep.progress.more(len(todo), f"{told}: {len(todo)} more trials")
        start = time.monotonic()
        sweep.execute(todo)
        last_seconds = time.monotonic() - start


def rows_so_far(sweep: Sweep) -> pd.DataFrame:
    """The run's rows of the trials table, including all that its writer was given."""
    sweep.writer.flush()
    return frames.trials_of(sweep.writer.results, sweep.writer.run.run_id)


def _widths(half_width: float, target: float) -> str:
    return f"Intervals reach ±{percent(half_width, 1)}, but ±{percent(target, 1)} was asked for"
