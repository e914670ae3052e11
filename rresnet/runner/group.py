"""A worker group of Ray Train that stays up and trains one trial after another: starting one takes 10 s and more."""

import faulthandler
import gc
import itertools
import pickle
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
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
from rresnet.runner.machines import NODE_ID
from rresnet.training.train import Record, train
from rresnet.training.workbench import Workbench

LOOK_SECONDS = 0.2  # between looks at whether the group has failed


class WorkerGroup:
    """The workers, with DDP, of cells that are alike in device, number of workers and threads."""

    def __init__(self, like: Cell, how: How, data: "ray.ObjectRef[ImageData]", nodes: Sequence[str]) -> None:
        """Start it, each worker on its node of `nodes`; nothing waits for it until it is to train."""
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

    def train(self, cell: Cell) -> Record:
        """Train a cell; raises what Ray Train tells of a worker that failed, after which the group is gone."""
        number = next(self._asked)
        self._exchange.ask.remote(cell)
        answer = self._exchange.answered.remote(number)
        while not ray.wait([answer], timeout=LOOK_SECONDS)[0]:
            if self._ended.done():
                raise self._ended.exception() or RuntimeError("the worker group has ended")
        record = pickle.loads(ray.get(answer))
        assert isinstance(record, Record)
        return record

    def end(self) -> None:
        """Let the workers go, and wait until what they held is free."""
        self._exchange.ask.remote(None)
        self._ended.result()


def _loop(config: dict[str, Any]) -> None:
    """What each worker does: train what is asked for, until that is nothing."""
    context, how, exchange = ray.train.get_context(), config["how"], config["exchange"]
    data = ray.get(config["data"][0])
    for number in itertools.count():
        cell = ray.get(exchange.asked.remote(number))
        if cell is None:
            return
        faulthandler.dump_traceback_later(how.limit_seconds(cell), exit=True)
        record = _train(cell, how, data, context.get_world_rank(), context.get_world_size())
        faulthandler.cancel_dump_traceback_later()
        if context.get_world_rank() == 0:
            ray.get(exchange.answer.remote(number, pickle.dumps(record)))
        gc.collect()  # the network and DDP refer to each other
        torch.cuda.empty_cache()


def _train(cell: Cell, how: How, data: ImageData, rank: int, world: int) -> Record:
    start = time.perf_counter()
    bench = Workbench(cell=cell, data=data, device=get_device(), rank=rank, world=world)
    return train(bench, how, startup_seconds=time.perf_counter() - start, progress=lambda images_per_second: None)
