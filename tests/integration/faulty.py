"""Real sweeps in whose trial processes chosen cells really come to grief."""

import contextlib
import ctypes
import dataclasses
import os
import signal
from pathlib import Path
from unittest import mock

import pandas as pd

from rresnet.config import How

BREAKS, KILLED, HANGS, TOO_LARGE, LEAKS = 2, 3, 4, 5, 6  # batch sizes that choose the fate
LIMIT = 30.0  # seconds; other tests run beside this one


@contextlib.contextmanager
def swept(planned, results, cpus=None, limit=LIMIT):
    """The rows of a real sweep of the planned trials, on so many CPUs; Ray is still up in the block."""
    import ray
    from rich.console import Console

    from rresnet import data, hardware
    from rresnet.progress import Progress
    from rresnet.runner import cluster
    from rresnet.runner.sweep import Sweep
    from rresnet.tables.runs import Run
    from rresnet.tables.store import Writer

    images = data.load("fashion-mnist-12k", image_size=32)
    many = len(planned)
    run = Run(run_id="faults", experiment="test", name="faults", plan_id="p", planned=many, started_at="2026-01-01")
    here = Path(__file__).parent
    importable = {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}  # for the trial processes: the trainable, the model
    machine = hardware.probe()
    if cpus:
        machine = dataclasses.replace(machine, cpu_count=cpus, cpu_cores=cpus)
    with mock.patch.dict(os.environ, importable), cluster.connect(None, machine) as found:
        with (
            (results / "progress").open("w") as shown,
            Writer(results, run) as writer,
            Progress(Console(file=shown), many) as progress,
        ):
            sweep = Sweep(
                machines=found,
                data=ray.put(images),
                how=How(seconds=0.05, timeout_seconds=limit),
                writer=writer,
                progress=progress,
                trainable=trial,
            )
            sweep.execute(planned)
        yield pd.read_parquet(results / "trials")


def slow_to_build(classes):
    """As a model: one that takes long to build, and not to train, so that it shows whether it was built again."""
    import time

    from samples import few_layers

    time.sleep(0.5)
    return few_layers(classes)


def for_the_first_worker(classes):
    """As a model: one whose first worker trains it, while the other fails after all that they do together."""
    import torch
    from samples import few_layers

    from rresnet.training import train

    if torch.distributed.get_rank() > 0:

        def fail(**parts):
            raise ValueError("not for this worker")

        train.Record = fail
    return few_layers(classes)


def trial(config, how, data):
    """`rresnet.runner.trial.run`, with a training loop that does to the trial what its batch size says."""
    fate = config["trial"].cell.batch_size
    if fate == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    if fate == LEAKS:
        from rresnet.runner.group import WorkerGroup

        WorkerGroup.train = lambda *of: os.kill(os.getpid(), signal.SIGKILL)  # with the group, which it leaves behind
    import torch

    from rresnet.runner import trial
    from rresnet.training import train

    def visit(bench, **arguments):
        fate = bench.cell.batch_size
        if fate == BREAKS:
            raise ValueError("the loop broke")
        if fate == HANGS:
            ctypes.PyDLL(None).sleep(3600)  # without letting any other Python thread have its turn
        if fate == TOO_LARGE:
            torch.empty(2**55)  # the real allocator, and a real refusal
        return real(bench, **arguments)

    real, train.visit = getattr(train, "real_visit", train.visit), visit
    train.real_visit = real
    trial.run(config, how, data)
