"""Trials for experiment trackers: TensorBoard's event files and an MLflow store. Each needs its extra."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rresnet.analysis import rates
from rresnet.analysis.frames import Tables
from rresnet.cell import CELL_COLUMNS, UsageError
from rresnet.naming import name
from rresnet.tables.measurement import TRIAL_KEY

# The columns of a trial that are tracked over its cell's repeats, and those of an epoch over epochs.
OF_TRIAL = ("images_per_second", "step_seconds", "epoch_seconds", "peak_memory_bytes", "energy_joules", "test_accuracy")
OF_SETTING = ("images_per_second", "low", "high")  # over all repeats: the mean and its interval
OF_EPOCH = ("train_loss", "test_loss", "test_accuracy", "seconds")
TAGS = ("hostname", "cpu_model", "gpu_name", "torch_version", "rresnet_version", "git_commit", "experiment")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A value of a cell, its step on the axis, and when it was known."""

    tag: str
    value: float
    step: int
    at: pd.Timestamp


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What trackers call a run: one cell in one of our runs."""

    run_id: str
    cell_id: str
    setting: str
    axes: dict[str, Any]
    tags: dict[str, str]
    points: tuple[Point, ...]


def tracked_runs(tables: Tables) -> Iterator[TrackedRun]:
    """The ok trials, cell by cell: values of trials by repeat, and values of epochs by epoch (of the first repeat).

    And the mean over all repeats, with their number as its step: a later export with more adds to what is there.
    """
    ok = tables.trials[tables.trials["status"] == "ok"]
    cells = ok.drop_duplicates("cell_id").to_dict("records")
    for (run_id, cell_id), trials in ok.sort_values("repeat").groupby(["run_id", "cell_id"], sort=False):
        first: dict[Any, Any] = trials.iloc[0].to_dict()
        epochs = tables.epochs.merge(trials[trials["repeat"] == first["repeat"]][TRIAL_KEY], on=TRIAL_KEY)
        mean = rates.by_cell(trials).assign(finished_at=trials["finished_at"].max())
        yield TrackedRun(
            run_id=str(run_id),
            cell_id=str(cell_id),
            setting=name(first, cells),
            axes={axis: first[axis] for axis in CELL_COLUMNS if pd.notna(first[axis])},
            tags={tag: str(first[tag]) for tag in TAGS if pd.notna(first[tag])},
            points=(
                *_points(trials, OF_TRIAL, "repeat", "trial"),
                *_points(epochs.assign(finished_at=first["finished_at"]), OF_EPOCH, "epoch", "epoch"),
                *_points(mean, OF_SETTING, "repeats", "setting"),
            ),
        )


def _points(rows: pd.DataFrame, columns: tuple[str, ...], step: str, prefix: str) -> Iterator[Point]:
    for row in rows.to_dict("records"):
        for column in columns:
            if pd.notna(row[column]):
                tag = f"{prefix}/{column}"
                yield Point(tag=tag, value=float(row[column]), step=int(row[step]), at=row["finished_at"])


def to_tensorboard(tables: Tables, folder: Path) -> int:
    """Write event files, one folder per series; what an earlier export wrote there is replaced.

    Returns:
        How many series there are.

    Raises:
        UsageError: the extra is not installed, or the folder can't be written to.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise _lacking("tensorboard") from error
    listed = list(tracked_runs(tables))
    try:
        for one in listed:
            # The end of the name is the cell's. What is before it depends on what else was exported, and holds text of
            # the user's own.
            end = f"-{one.cell_id[:12]}"
            home = folder / one.run_id / f"{re.sub('[^A-Za-z0-9_.]+', '-', one.setting)}{end}"
            for old in home.parent.glob(f"*{end}/events.out.tfevents.*"):
                old.unlink()
                if old.parent != home and not any(old.parent.iterdir()):
                    old.parent.rmdir()
            home.mkdir(parents=True, exist_ok=True)
            with SummaryWriter(str(home)) as writer:
                writer.add_text("setting", "\n".join(f"- {k}: {v}" for k, v in (one.axes | one.tags).items()), 0)
                for point in one.points:
                    writer.add_scalar(point.tag, point.value, point.step, walltime=point.at.timestamp())
    except OSError as error:
        raise UsageError(f"can't write to {folder}: {error.strerror}; choose another --out") from error
    return len(listed)


def to_mlflow(tables: Tables, uri: str) -> int:
    """Write runs to an MLflow store, one per series; a run that is already there gets the points that it lacks.

    Returns:
        How many runs were added or got more points.

    Raises:
        UsageError: the extra is not installed, or the store can't be used.
    """
    try:
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise _lacking("mlflow") from error
    try:
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name("rresnet")
        home = found.experiment_id if found else client.create_experiment("rresnet")
        added = 0
        for one in tracked_runs(tables):
            key = f"{one.run_id}/{one.cell_id}"
            there = client.search_runs([home], filter_string=f"tags.`rresnet.series` = '{key}'")
            starts, ends = (int(f(p.at for p in one.points).timestamp() * 1000) for f in (min, max))
            exported = {
                (tag, metric.step, metric.timestamp)
                for run in there
                for tag in {p.tag for p in one.points}
                for metric in client.get_metric_history(run.info.run_id, tag)
            }
            times = [int(p.at.timestamp() * 1000) for p in one.points]  # later where a trial was run again
            metrics = [
                Metric(p.tag, p.value, at, p.step)
                for p, at in zip(one.points, times, strict=True)
                if (p.tag, p.step, at) not in exported
            ]
            if there and not metrics:
                continue
            tags = one.tags | {"rresnet.series": key, "rresnet.run_id": one.run_id}
            of = there[0] if there else client.create_run(home, start_time=starts, run_name=one.setting, tags=tags)
            run, logged = of.info.run_id, of.data.params
            client.log_batch(run, params=[Param(k, str(v)) for k, v in one.axes.items() if k not in logged])
            for i in range(0, len(metrics), 1000):  # MLflow takes no more at once
                client.log_batch(run, metrics=metrics[i : i + 1000])
            client.set_terminated(run, end_time=ends)
            added += 1
    except MlflowException as error:
        raise UsageError(
            f"can't use the MLflow store {uri}: {str(error).partition(chr(10))[0]}; "
            "give --out a store's URI, for example sqlite:///mlflow.db or http://HOST:5000"
        ) from error
    return added


def _lacking(extra: str) -> UsageError:
    return UsageError(f"--format {extra} needs its extra, which is not installed: pip install 'rresnet[{extra}]'")
