"""What a report is about: runs of results folders, each on one machine, kept apart."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pandas as pd

from rresnet.analysis import frames, load
from rresnet.analysis.frames import Tables
from rresnet.config import OF_SIZES
from rresnet.tables.measurement import DETAILS, TRIAL_KEY
from rresnet.tables.place import StoreError
from rresnet.tables.runs import Run, read_runs
from rresnet.terminal import counted


@dataclass(frozen=True, kw_only=True)
class Part:
    """The rows of one run that were measured on one machine."""

    source: str  # the results folder, as it was given
    run_id: str
    machine: str
    tables: Tables
    given_name: str = ""  # from --name, where that is not the experiment's
    unfinished: str = ""  # what is missing from the run

    @property
    def trials(self) -> pd.DataFrame:
        """Its rows of the trials table."""
        return self.tables.trials

    @property
    def experiment(self) -> str:
        """The experiment that planned it."""
        return str(self.trials["experiment"].iloc[0])

    @property
    def started_at(self) -> datetime | None:
        """When its first trial started."""
        first = self.trials["started_at"].min()
        return None if pd.isna(first) else first

    @property
    def hardware(self) -> str:
        """The machine's processor, and the GPU that was measured, as far as the rows tell."""
        kinds = self.trials[["cpu_model", "cpu_count"]].dropna().drop_duplicates()
        processors = [f"{model}, {counted(int(count), 'CPU')}" for model, count in kinds.itertuples(index=False)]
        return ", ".join([*(processors or ["processor not known"]), *self.gpus])

    @property
    def gpus(self) -> list[str]:
        """The kinds of GPU that were measured."""
        return sorted(self.trials["gpu_name"].dropna().unique())

    @property
    def doubts(self) -> list[str]:
        """Why not to trust it: that it is not finished, or that most rows are doubtful."""
        return [*([self.unfinished] if self.unfinished else []), *load.doubts(self.trials)]

    @property
    def trained(self) -> str:
        """What was trained, on which data."""
        kinds = self.trials[["model", "dataset", "image_size"]].drop_duplicates()
        return ", ".join(f"{model} on {data}, {size} x {size}" for model, data, size in kinds.itertuples(index=False))


def read(folders: Sequence[Path], runs: Sequence[str] = ()) -> list[Part]:
    """Read the runs of some results folders, one part for each machine of a run, the newest first.

    Args:
        folders: results folders; one that is named twice is read once, and so is a run of which another holds a copy.
        runs: ids of the runs that are wanted; all of them if none is given.

    Raises:
        StoreError: a folder has no results, or a run that is wanted is in none of them.
    """
    once = list({folder.resolve(): folder for folder in folders}.values())
    tables, homes = frames.read_with_homes(once)
    manifests = [run for n, folder in enumerate(once) for run in read_runs(folder) if homes.get(run.run_id) == n]
    found = list(split(tables, {run_id: str(once[n]) for run_id, n in homes.items()}, manifests))
    unknown = sorted(set(runs) - {part.run_id for part in found})
    if unknown:
        there = ", ".join(sorted({part.run_id for part in found})) or "none"
        raise StoreError(f"no run {', '.join(unknown)} in {', '.join(map(str, folders))}; there are: {there}")
    wanted = [part for part in found if not runs or part.run_id in runs]
    return sorted(wanted, key=lambda part: (part.started_at is not None, part.started_at), reverse=True)


def split(tables: Tables, sources: Mapping[str, str], runs: Sequence[Run] = ()) -> Iterator[Part]:
    """Split the tables by run and machine; `sources` are the runs' folders.

    A row that names no machine (its trial never started) goes to the run's machine if there is only one.
    """
    planned = {run.run_id: run for run in runs}
    for run_id, of_run in tables.trials.groupby("run_id", sort=False):
        hosts = of_run["hostname"].dropna().unique()
        machines = of_run["hostname"].fillna(hosts[0] if len(hosts) == 1 else "machine not known")
        for machine, trials in of_run.groupby(machines, sort=False):
            yield Part(
                source=sources[str(run_id)],
                run_id=str(run_id),
                machine=str(machine),
                tables=Tables(
                    trials=trials,
                    **{name: getattr(tables, name).merge(trials[TRIAL_KEY], on=TRIAL_KEY) for name in DETAILS},
                ),
                given_name=_given_name(planned.get(str(run_id))),
                unfinished=_unfinished(planned.get(str(run_id)), len(of_run)),
            )


def _given_name(run: Run | None) -> str:
    return "" if run is None or run.experiment.removesuffix(OF_SIZES) == run.name else run.name


def _unfinished(run: Run | None, rows: int) -> str:
    if run is None or run.finished_at is not None:
        return ""
    if rows >= run.planned:  # of a run that adds trials as it goes
        return f"Not finished: {rows} rows so far."
    return f"Not finished: {rows} of {run.planned} planned trials have a row so far."
