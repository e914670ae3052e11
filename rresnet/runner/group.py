"""A worker group of Ray Train that stays up and trains one trial after another: starting one takes 10 s and more."""

import faulthandler
import gc
import itertools
import pickle  # nosec B403
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rresnet import scratch
from rresnet.cell import Cell
from rresnet.config import How
from rresnet.data import ImageData
from rresnet.runner.exchange import Exchange
from rresnet.runner.lane import group_of
from rresnet.runner.machines import NODE_ID
from rresnet.training import inputs
from rresnet.training.train import Record, train
from rresnet.training.workbench import Workbench

END_SECONDS = 30.0  # for workers that have nothing left to do


class WorkerGroup:
    """The workers, with DDP, of cells that are alike in what `group_of` names."""

    def __init__(self, like: Cell, how: How, data: "ray.ObjectRef[ImageData]", nodes: Sequence[str]) -> None:
        """Start it, each worker on its node of `nodes`; nothing waits for it until it is to train."""
        self._like = like
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._exchange = ray.remote(Exchange).options(num_cpus=0, scheduling_strategy=here).remote()
        self._asked = itertools.count()
        self._ended = Future[None]()
        scaling = ray.train.ScalingConfig(
            num_workers=like.num_workers,
            use_gpu=like.device == "gpu",
            resources_per_worker={"CPU": like.cpu_threads, **({"GPU": 1} if like.device == "gpu" else {})},
            label_selector=[{NODE_ID: node} for node in nodes],
        )
        config = {"exchange": self._exchange, "how": how, "data": [data]}
        # Ray Train returns when the workers do. Nor does the end of this process wait for a thread that is a daemon.
        threading.Thread(target=self._run, args=(config, scaling), name="rresnet-group", daemon=True).start()

    def _run(self, config: dict[str, Any], scaling: ray.train.ScalingConfig) -> None:
        try:
            with scratch.folder() as storage:
                TorchTrainer(
                    _loop,
                    train_loop_config=config,
                    scaling_config=scaling,
                    run_config=ray.train.RunConfig(name="train", storage_path=str(storage)),
                ).fit()
            self._ended.set_result(None)
        except BaseException as error:
            self._ended.set_exception(error)

    def can_train(self, cell: Cell) -> bool:
        """Whether the cell is one of its kind, and no worker has ended."""
        return group_of(cell) == group_of(self._like) and not self._ended.done()

    def train(self, cell: Cell) -> Record:
        """Train a cell; raises what Ray Train tells of a worker that failed, after which the group is gone."""
        self._exchange.ask.remote(cell)
        answer = self._exchange.answered.remote(next(self._asked)).future()
        wait([answer, self._ended], return_when=FIRST_COMPLETED)
        if not answer.done():
            raise self._ended.exception() or RuntimeError("the worker group has ended")
        record = pickle.loads(answer.result())  # nosec B301: from our own worker, and Ray sends nothing but pickles
        assert isinstance(record, Record)
        return record

    def end(self) -> None:
        """Let the workers go, and wait until what they held is free. What fails then has no part in any trial."""
        self._exchange.ask.remote(None)
        wait([self._ended], timeout=END_SECONDS)


def _loop(config: dict[str, Any]) -> None:
    """What each worker does: train what is asked for, until that is nothing."""
    context, how, exchange = ray.train.get_context(), config["how"], config["exchange"]
    images: ImageData | None = None
    for number in itertools.count():
        cell = ray.get(exchange.asked.remote(number))
        if cell is None:
            return
        faulthandler.dump_traceback_later(how.limit_seconds(cell), exit=True)
        start = time.perf_counter()
        images = images or ray.get(config["data"][0])
        record = _train(cell, how, images, start)
        torch.distributed.barrier()  # where another worker has failed, there is no record
        faulthandler.cancel_dump_traceback_later()
        if context.get_world_rank() == 0:
            ray.get(exchange.answer.remote(number, pickle.dumps(record)))
        _forget()


def _train(cell: Cell, how: How, images: ImageData, start: float) -> Record:
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    bench = Workbench(cell=cell, data=images, device=get_device(), rank=rank, world=world)
    return train(bench, how, startup_seconds=time.perf_counter() - start, progress=lambda images_per_second: None)


def _forget() -> None:
    """Free what a cell has left, so that the next one has as much memory as in a new process."""
    inputs.resident.cache_clear()
    gc.collect()  # the network and DDP refer to each other
    torch.cuda.empty_cache()
