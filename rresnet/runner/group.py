"""A worker group of Ray Train that stays up and trains one trial after another: starting one takes 10 s or more."""

import faulthandler
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
from torch import distributed

from rresnet import scratch
from rresnet.cell import Cell, Device
from rresnet.config import WORKERS_SECONDS, How
from rresnet.data import ImageData
from rresnet.runner import layout
from rresnet.runner.exchange import Exchange, Request, Training
from rresnet.runner.hot import MEMORY_RESERVE, HotCells, free_memory_share, give_back, images_of
from rresnet.runner.layout import Layout
from rresnet.runner.machines import NODE_ID
from rresnet.tables.measurement import Record
from rresnet.training.train import train
from rresnet.training.workbench import Workbench

END_SECONDS = 30.0  # how long workers with nothing left to do may take to end


class WorkerGroup:
    """DDP workers that keep the cells they have built hot; a cell may take all of them or a part."""

    def __init__(self, those: Layout, how: How, data: "ray.ObjectRef[ImageData]") -> None:
        """Start the workers; nothing waits for them until they are to train."""
        home = ray.get_runtime_context().get_node_id()
        here = NodeAffinitySchedulingStrategy(home, soft=True)
        self._exchange = ray.remote(Exchange).options(num_cpus=0, scheduling_strategy=here).remote()
        self._asked = itertools.count()
        self._ended = Future[None]()
        self._hot = set[Cell]()
        self._free_memory = 1.0  # smallest free share of memory that only workers see, after the latest trial
        scaling = ray.train.ScalingConfig(
            num_workers=len(those.nodes),
            use_gpu=those.device == "gpu",
            resources_per_worker=those.each,
            label_selector=[{NODE_ID: node} for node in those.nodes],
        )
        config = {"exchange": self._exchange, "device": those.device, "home": home, "how": how, "data": [data]}
        # Ray Train returns only when the workers do, and the end of this process does not wait for a daemon thread.
        threading.Thread(target=self._run, args=(config, scaling), name="rresnet-group", daemon=True).start()

    def _run(self, config: dict[str, Any], scaling: ray.train.ScalingConfig) -> None:
        try:
            with scratch.folder() as storage:
                GroupTrainer(
                    _loop,
                    train_loop_config=config,
                    scaling_config=scaling,
                    run_config=ray.train.RunConfig(
                        name="train",
                        storage_path=str(storage),
                        # By default it would retry without end.
                        failure_config=ray.train.FailureConfig(controller_failure_limit=0, max_preemption_failures=0),
                    ),
                ).fit()
            self._ended.set_result(None)
        except BaseException as error:
            self._ended.set_exception(error)

    @property
    def ended(self) -> bool:
        """Whether the group was let go, or a worker has ended."""
        return self._ended.done()

    @property
    def count(self) -> int:
        """How many cells are hot."""
        return len(self._hot)

    def __contains__(self, cell: Cell) -> bool:
        """Whether the cell is hot."""
        return cell in self._hot

    def train(self, cell: Cell, nodes: Sequence[str]) -> Record:
        """Train a cell, with a worker on each of `nodes`.

        Raises Ray Train's error when a worker has failed; the group is then gone.
        """
        if self._free_memory < MEMORY_RESERVE and cell not in self:
            self.forget()
        answer = self._answer_to(Training(cell, tuple(nodes)))
        record, self._free_memory = pickle.loads(answer)  # nosec B301: from our own worker, and Ray sends only pickles
        assert isinstance(record, Record)
        if not cell.epochs:
            self._hot.add(cell)
        return record

    def wait_until_up(self) -> None:
        """Wait until the workers are up, before asking them for anything; raises TimeoutError or Ray Train's error."""
        self._answer_to("forget", timeout=WORKERS_SECONDS)

    def forget(self) -> None:
        """Free what the workers have kept."""
        self._answer_to("forget")
        self._hot.clear()
        self._free_memory = 1.0

    def end(self) -> None:
        """Let the workers go, and wait until what they held is free. A failure at this point affects no trial."""
        self._exchange.ask.remote("end")
        wait([self._ended], timeout=END_SECONDS)

    def _answer_to(self, request: Request, timeout: float | None = None) -> bytes:
        self._exchange.ask.remote(request)
        answer = self._exchange.answered.remote(next(self._asked)).future()
        if not wait([answer, self._ended], timeout=timeout, return_when=FIRST_COMPLETED).done:
            raise TimeoutError(f"the workers of a group did not answer within {timeout:g} s")
        if not answer.done():
            raise self._ended.exception() or RuntimeError("the worker group has ended")
        content: bytes = answer.result()
        return content


class GroupTrainer(TorchTrainer):  # type: ignore[misc]  # Ray leaves it untyped
    """Starts the workers with two actors fewer, each of which would import Ray Train, for seconds, and then be idle.

    One hands out shards of Ray Data's datasets, of which there are none. The other asks an autoscaler for machines,
    which are there already; the controller would wait until it has. A version of Ray that has other names for these
    starts them.
    """

    def _create_default_callbacks(self) -> list[Any]:
        return [one for one in super()._create_default_callbacks() if type(one).__name__ != "DatasetsCallback"]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        if policy := settings.get("scaling_policy"):
            for request in ("_send_resource_request", "_maybe_send_resource_request", "_cancel_resource_request"):
                setattr(policy, request, _nothing)
        return super()._initialize_and_run_controller(**settings)


def _nothing() -> None:
    pass


def _loop(config: dict[str, Any]) -> None:
    """Meet requests, in each worker, until asked to end."""
    exchange, worker = config["exchange"], _Worker(**config)
    for number in itertools.count():
        request: Request = ray.get(exchange.asked.remote(number))
        if request == "end":
            return
        answer = worker.forget() if request == "forget" else worker.train(request)
        if answer is not None:
            ray.get(exchange.answer.remote(number, answer))


class _Worker:
    """One worker of the group; once all workers concerned have met a request, one of them answers it."""

    def __init__(
        self, *, exchange: Any, device: Device, home: str, how: How, data: "list[ray.ObjectRef[ImageData]]"
    ) -> None:
        self._device, self._how, self._data = device, how, data
        self._hot = HotCells()
        self._rank = distributed.get_rank()
        self._places: list[Any] = [None] * distributed.get_world_size()
        here = ray.get_runtime_context().get_node_id()
        distributed.all_gather_object(self._places, here)
        self._seen_at_home = device == "cpu" and here == home  # whether the trial process sees its memory
        self._parts: dict[tuple[int, ...], tuple[Any, Any]] = {}  # ranks -> their process groups

    def forget(self) -> bytes | None:
        self._hot.clear()
        distributed.barrier()
        return b"" if self._rank == 0 else None

    def train(self, request: Training) -> bytes | None:
        """Train the cell, if it takes this worker."""
        cell, ranks = request.cell, layout.members(request.nodes, self._places)
        faulthandler.dump_traceback_later(self._how.limit_seconds(cell), exit=True)
        try:
            part, agreeing = self._part(tuple(ranks))
            if self._rank not in ranks:
                return None
            start = time.perf_counter()
            images = images_of(self._data[0])
            record = train(
                self._hot.bench(cell, lambda: self._build(cell, images, ranks, part, agreeing)),  # no name keeps it
                self._how,
                startup_seconds=time.perf_counter() - start,  # evaluated after the build
                progress=lambda images_per_second: None,
            )
            give_back(cell)
            share = 1.0 if self._seen_at_home else free_memory_share(self._device)
            free = torch.tensor(share, device=get_device())
            distributed.all_reduce(free, distributed.ReduceOp.MIN, group=part)  # fails if another worker has: no record
        finally:
            faulthandler.cancel_dump_traceback_later()
        return pickle.dumps((record, free.item())) if self._rank == ranks[0] else None

    def _part(self, ranks: tuple[int, ...]) -> tuple[Any, Any]:
        """The process groups of a cell's workers: one for tensors on their device, one for tensors on the CPU.

        All workers make them, including those that are not in them.
        """
        if ranks not in self._parts:
            everyone, on_gpu = len(ranks) == len(self._places), self._device == "gpu"
            part = distributed.group.WORLD if everyone else distributed.new_group(list(ranks))
            self._parts[ranks] = part, distributed.new_group(list(ranks), backend="gloo") if on_gpu else part
        return self._parts[ranks]

    def _build(self, cell: Cell, images: ImageData, ranks: Sequence[int], part: Any, agreeing: Any) -> Workbench:
        rank, world = ranks.index(self._rank), len(ranks)
        return Workbench(
            cell=cell, data=images, device=get_device(), rank=rank, world=world, workers=part, agreeing=agreeing
        )
