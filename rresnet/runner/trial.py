"""The trial process: runs one trial after another and keeps the cells it has built hot."""

import faulthandler
import gc
import math
import os
import time
import traceback
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import psutil
import ray
import ray.train
import torch
from ray import tune
from ray.train.torch import TorchTrainer

from rresnet import scratch
from rresnet.cell import Cell, Trial
from rresnet.config import How
from rresnet.data import ImageData
from rresnet.runner.group import WorkerGroup
from rresnet.runner.lane import TrialProcessSpentError, death
from rresnet.tables import environment
from rresnet.tables.measurement import Measurement
from rresnet.training.train import Progress, Record, is_out_of_memory, train
from rresnet.training.workbench import Workbench

MEMORY_RESERVE = 0.25  # share of the memory that must be free before another cell is built beside the hot ones
PROGRESS_SECONDS = 1.0
TEXT_CHARACTERS = 2000


class _HotCells:
    """The cells this process has built, least recently used first."""

    def __init__(self) -> None:
        self.benches: OrderedDict[str, Workbench] = OrderedDict()
        self.announced = False
        self._data: dict[str, ImageData] = {}

    def data(self, ref: "ray.ObjectRef[ImageData]") -> ImageData:
        """The data set behind `ref`; fetched once in this process."""
        if ref.hex() not in self._data:
            self._data[ref.hex()] = ray.get(ref)
        return self._data[ref.hex()]

    def bench(self, cell: Cell, data: ImageData) -> Workbench:
        """The cell's workbench, built on its first use and dropped when memory is short."""
        if cell.cell_id not in self.benches:
            while self.benches and _free_memory_share(cell) < MEMORY_RESERVE:
                self.benches.popitem(last=False)
                gc.collect()
                torch.cuda.empty_cache()
            self.benches[cell.cell_id] = Workbench(cell=cell, data=data, device=_local_device(cell))
        self.benches.move_to_end(cell.cell_id)
        return self.benches[cell.cell_id]


_HOT = _HotCells()
_GROUP: WorkerGroup | None = None  # that waits for the next trial

# Tune runs each trial on a new thread. OpenMP keeps a pool of threads for each thread that ever asked for one, and
# malloc an arena: training on a new thread each time made the first step take twice as long, and every step slower.
_TRAINING_THREAD = ThreadPoolExecutor(1, thread_name_prefix="rresnet-train")


def _local_device(cell: Cell) -> torch.device:
    return torch.device("cuda" if cell.device == "gpu" else "cpu")


def _free_memory_share(cell: Cell) -> float:
    if cell.device == "gpu":
        free, total = torch.cuda.mem_get_info()
        return free / total
    memory = psutil.virtual_memory()
    return memory.available / memory.total


def run(config: dict[str, Any], how: How, data: list["ray.ObjectRef[ImageData]"]) -> None:
    """Run one trial and report its record, whatever happens in it.

    A trial that overstays is ended with its process, by a watchdog that needs no Python thread to get its turn.
    """
    trial = Trial.from_json(config["trial"])
    started, clock, alone = datetime.now(UTC), time.monotonic(), not _HOT.benches
    if not _HOT.announced:  # the driver's clock for the time limit starts here: importing torch does not count
        _HOT.announced = True
        environment.git_commit()  # of the code that was just imported, whatever is changed while it runs
        tune.report({"process_id": os.getpid()})
    faulthandler.dump_traceback_later(how.process_limit_seconds(trial.cell), exit=True)
    try:
        record = _TRAINING_THREAD.submit(_fit, trial.cell, how, data[0], config).result()
    except (Exception, SystemExit) as error:
        elapsed, limit = time.monotonic() - clock, how.limit_seconds(trial.cell)  # the workers watch it themselves
        record = Record(measurement=failure(error, elapsed, limit))
    finally:
        faulthandler.cancel_dump_traceback_later()
    outcome = {
        "record": asdict(replace(record, files={})),
        "files": record.files,
        "environment": asdict(environment.describe(trial.cell.device)),
        "when": {"started_at": started, "finished_at": datetime.now(UTC)},
        "alone": alone,
    }
    ok = record.measurement.status == "ok"
    # In a list, for Tune flattens dicts, and averages each number in them; done, so that it need not ask for the end.
    tune.report({"outcome": [outcome], "done": ok})
    if not ok:
        raise TrialProcessSpentError(record.measurement.error_type)


def _fit(cell: Cell, how: How, data: "ray.ObjectRef[ImageData]", config: dict[str, Any]) -> Record:
    """Have Ray Train run the cell, alone in this process or in a group of workers."""
    if cell.num_workers > 1:
        return _in_group(cell, how, data, config)
    with scratch.folder() as storage:
        trainer = TorchTrainer(
            _loop,
            train_loop_config={"cell": cell, "how": how, "data": [data], "progress": _reporter()},
            # 0 workers: local mode, the loop runs in this process
            scaling_config=ray.train.ScalingConfig(num_workers=0, use_gpu=cell.device == "gpu"),
            run_config=ray.train.RunConfig(name="train", storage_path=str(storage)),
        )
        record = trainer.fit().return_value
    assert isinstance(record, Record)
    return record


def _in_group(cell: Cell, how: How, data: "ray.ObjectRef[ImageData]", config: dict[str, Any]) -> Record:
    """Train in the worker group of the trial before, which stays up as long as the next trial needs the same one."""
    global _GROUP
    group, _GROUP = _GROUP, None  # one whose trial fails is gone
    if group and not group.can_train(cell):
        group.end()
        group = None
    group = group or WorkerGroup(cell, how, data, config["nodes"])
    record = group.train(cell)
    if config["group_stays"]:
        _GROUP = group
    else:
        group.end()
    return record


def _reporter() -> Progress:
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
    data = _HOT.data(config["data"][0])
    # One that trains epochs starts from the seed each time, so there is nothing to keep.
    bench = Workbench(cell=cell, data=data, device=_local_device(cell)) if cell.epochs else _HOT.bench(cell, data)
    ready = time.perf_counter() - start
    return train(bench, config["how"], startup_seconds=ready, progress=config["progress"])


def failure(error: BaseException, elapsed_seconds: float = 0.0, limit_seconds: float = math.inf) -> Measurement:
    """The measurement of a trial that raised.

    Where Ray Train tells that the process of a worker has ended, it is told from the time that the trial took, and its
    limit, whether that was the worker's watchdog.
    """
    failures = getattr(error, "worker_failures", None) or {0: error}  # Ray Train wraps what its workers raised
    polled = [getattr(one, "health_check_failure", None) for one in failures.values()]
    deaths = [one for one in polled if isinstance(one, ray.exceptions.RayActorError | ray.exceptions.OutOfMemoryError)]
    cause = next(iter([*deaths, *failures.values()]))  # where one has died, the others raise that it no longer answers
    output_tail = "".join(traceback.format_exception(cause))[-TEXT_CHARACTERS:]
    if deaths:
        return replace(death(_told(cause), elapsed_seconds, limit_seconds), output_tail=output_tail)
    return Measurement(
        status="out_of_memory" if is_out_of_memory(cause) else "error",
        error_type=type(cause).__name__,
        error_message=_told(cause)[:TEXT_CHARACTERS],
        output_tail=output_tail,
    )


def _told(error: BaseException) -> str:
    return str(error) or repr(error)
