"""The trial process: runs one trial after another, and keeps hot the cells that it and its workers have built."""

import faulthandler
import itertools
import math
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import ray
import ray.train
import torch
from ray import tune
from ray.train.torch import TorchTrainer

from rresnet import hardware, scratch
from rresnet.cell import Cell, Device, Trial
from rresnet.config import How
from rresnet.data import ImageData
from rresnet.runner.failures import TrialProcessSpentError, death
from rresnet.runner.group import WorkerGroup
from rresnet.runner.hot import MEMORY_RESERVE, HotCells, free_memory_share, give_back, images_of
from rresnet.runner.layout import Layout, trains_all
from rresnet.tables import environment
from rresnet.tables.measurement import Measurement, Record, When
from rresnet.training.memory import is_out_of_memory
from rresnet.training.train import ProgressCallback, train
from rresnet.training.workbench import Workbench

PROGRESS_SECONDS = 1.0
TEXT_CHARACTERS = 2000

_HOT = HotCells()
_GROUPS: dict[Device, WorkerGroup] = {}
_FAILED: dict[Device, Exception] = {}  # groups that did not start -> the error
_TRIALS = itertools.count()

# Tune runs each trial on a new thread. OpenMP keeps a pool of threads for each thread that ever asked for one, and
# malloc an arena: training on a new thread each time made the first step take twice as long, and every step slower.
_TRAINING_THREAD = ThreadPoolExecutor(1, thread_name_prefix="rresnet-train")


def run(config: dict[str, Any], how: How, data: list["ray.ObjectRef[ImageData]"]) -> None:
    """Run one trial and report its record, whatever happens in it.

    A trial that exceeds its time limit is ended with its process, by a watchdog that works even when no Python thread
    gets to run.
    """
    trial: Trial = config["trial"]
    first = not next(_TRIALS)
    if first:
        _order_gpus()
        environment.git_commit()  # of the code that was just imported, whatever is changed while it runs
        _say_ready()
    environment.model_code(trial.cell.model)  # likewise
    _start_groups(config["groups"], how, data[0])
    started, clock = datetime.now(UTC), time.monotonic()
    try:
        faulthandler.dump_traceback_later(how.process_limit_seconds(trial.cell), exit=True)
        record = _TRAINING_THREAD.submit(_train, trial.cell, how, data[0], config["nodes"]).result()
    except (Exception, SystemExit) as error:
        elapsed, limit = time.monotonic() - clock, how.limit_seconds(trial.cell)  # which the workers watch themselves
        record = Record(measurement=failure(error, elapsed, limit))
    finally:
        faulthandler.cancel_dump_traceback_later()
    when = When(started_at=started, finished_at=datetime.now(UTC))
    record = replace(record, environment=environment.of_trial(trial.cell), when=when)
    alone = first and all(trains_all(trial.cell, group) for group in config["groups"].values())
    ok = record.measurement.status == "ok"
    if config["is_last"] or not ok:
        for group in _GROUPS.values():
            group.end()
    # One value, because Tune averages each that is a number; "done", so that Tune need not ask for the end.
    tune.report({"outcome": (record, alone), "done": ok})
    if not ok:
        raise TrialProcessSpentError(record.measurement.error_type)


def _order_gpus() -> None:
    """Make the first GPU the same one in every process: Ray lists a process's GPUs in the arbitrary order of a set."""
    hardware.count_gpus_as_nvml_does()
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(sorted(visible.split(","), key=hardware.gpu_order))


def _say_ready() -> None:
    """Restart the driver's clock for the time limit: importing torch and starting workers do not count."""
    tune.report({"process_id": os.getpid()})


def _start_groups(groups: Mapping[Device, Layout], how: How, data: "ray.ObjectRef[ImageData]") -> None:
    """Start the groups that are missing or have ended, so that nothing is measured while they start.

    A group that does not start fails the next trial that needs it, and thereby the process; the other trials can do
    without it.
    """
    lacking = [kind for kind in groups if kind not in _FAILED and (kind not in _GROUPS or _GROUPS[kind].ended)]
    if lacking:
        tune.report({"workers_to_start": sum(len(groups[kind].nodes) for kind in lacking)})
    for kind in lacking:
        _GROUPS[kind] = WorkerGroup(groups[kind], how, data)
    for kind in lacking:
        try:
            _GROUPS[kind].wait_until_up()
        except Exception as error:
            _FAILED[kind] = error
    if lacking:
        _say_ready()


def _make_room(device: Device) -> None:
    """If memory is short, drop hot cells, least recently used first, and then all that the device's workers keep."""
    while _HOT.count and free_memory_share(device) < MEMORY_RESERVE:
        _HOT.drop()
    group = _GROUPS.get(device)
    if group is not None and group.count and free_memory_share(device) < MEMORY_RESERVE:
        group.forget()


def _train(cell: Cell, how: How, data: "ray.ObjectRef[ImageData]", nodes: Sequence[str]) -> Record:
    """Have Ray Train run the cell, alone in this process or in a group of workers."""
    if cell.num_workers > 1 and cell.device in _FAILED:
        raise _FAILED[cell.device]
    group = _GROUPS[cell.device] if cell.num_workers > 1 else None
    if cell not in (_HOT if group is None else group):
        _make_room(cell.device)
    if group is not None:
        return group.train(cell, nodes)
    with scratch.folder() as storage:
        trainer = TorchTrainer(
            _loop,
            train_loop_config={"cell": cell, "how": how, "data": [data], "progress": _reporter()},
            # 0 workers: local mode, the loop runs in this process
            scaling_config=ray.train.ScalingConfig(num_workers=0, use_gpu=cell.device == "gpu"),
            run_config=ray.train.RunConfig(name="train", storage_path=str(storage)),
        )
        record = trainer.fit().return_value
    if _GROUPS or cell.epochs:
        give_back(cell)
    assert isinstance(record, Record)
    return record


def _reporter() -> ProgressCallback:
    last = time.monotonic()

    def report(images_per_second: float) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_SECONDS:
            tune.report({"images_per_second": images_per_second})
            last = time.monotonic()

    return report


def _loop(config: dict[str, Any]) -> Record:
    start = time.perf_counter()
    cell: Cell = config["cell"]
    data, device = images_of(config["data"][0]), torch.device("cuda" if cell.device == "gpu" else "cpu")
    bench = _HOT.bench(cell, lambda: Workbench(cell=cell, data=data, device=device))
    ready = time.perf_counter() - start
    return train(bench, config["how"], startup_seconds=ready, progress=config["progress"])


def failure(error: BaseException, elapsed_seconds: float = 0.0, limit_seconds: float = math.inf) -> Measurement:
    """The measurement of a trial that raised.

    If Ray Train reports that the process of a worker has ended, the time that the trial took and its limit tell whether
    the worker's watchdog ended it.
    """
    failures = getattr(error, "worker_failures", None) or {0: error}  # Ray Train wraps what its workers raised
    polled = [getattr(one, "health_check_failure", None) for one in failures.values()]
    deaths = [one for one in polled if isinstance(one, ray.exceptions.RayActorError | ray.exceptions.OutOfMemoryError)]
    cause = next(iter([*deaths, *failures.values()]))  # where one has died, the others raise that it no longer answers
    output_tail = "".join(traceback.format_exception(cause))[-TEXT_CHARACTERS:]
    if deaths:
        return replace(death(_message(cause), elapsed_seconds, limit_seconds), output_tail=output_tail)
    return Measurement(
        status="out_of_memory" if is_out_of_memory(cause) else "error",
        error_type=type(cause).__name__,
        error_message=_message(cause)[:TEXT_CHARACTERS],
        output_tail=output_tail,
    )


def _message(error: BaseException) -> str:
    return str(error) or repr(error)
