"""Cells of few images that tests train; on the CPU unless told otherwise."""

import itertools
from dataclasses import replace

import numpy as np
import torch
from samples import make_cell

from rresnet.data import ImageData, Split
from rresnet.training import model, relu, step
from rresnet.training.workbench import Workbench

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def split(count, channels=1, size=32, seed=0):
    random = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % 4
    images = (
        random.integers(0, 64, (count, channels, size, size), dtype=np.uint8)
        + (labels * 48).astype(np.uint8)[:, None, None, None]
    )
    return Split(images=images, labels=labels)


def image_data(count=40, channels=1):
    return ImageData(
        train=split(count, channels),
        test=split(12, channels, seed=1),
        classes=tuple("abcd"),
        fingerprint="f",
    )


def bench(data=None, **changes):
    # One thread: the tests run side by side, and threads that wait for each other's cores crawl.
    cell = make_cell(**{"cpu_threads": 1, **changes})
    return Workbench(cell=cell, data=data or image_data(), device=GPU if cell.device == "gpu" else CPU)


def small_bench(data=None, **changes):
    """For what is the same with every model: a ResNet takes many times as long."""
    return bench(data, **{"model": "samples:few_layers", **changes})


def losses(execution="eager", **changes):
    """Losses of three steps in float64, where rounding does not grow into a difference of its own."""
    found = bench(**changes)
    found.network.double()
    if execution == "compile" and found.cell.device == "cpu":
        relu.for_the_compiler(found.network)

    def load(*raw):
        images, labels = found.inputs.load(*raw)
        return images.double(), labels

    cell = replace(found.cell, execution=execution)
    optimizer = model.optimizer_of(found.network, cell)
    take = step.build(cell, found.network, optimizer, load, found.inputs.examples)
    found.start_over()
    return [take(*raw).item() for raw in itertools.islice(found.inputs.forever(), 3)]


def replaying(steps, restore):
    """A capture as a GPU makes it, on a CPU: static buffers, that a replay fills and the whole step reads."""
    statics = [[tensor.clone() for tensor in example] for _, example in steps]
    for (take, _), static in zip(steps, statics, strict=True):
        for _ in range(3):
            take(*static)
    restore()

    def replay_of(take, static):
        def replay(*raw):
            for buffer, tensor in zip(static, raw, strict=True):
                buffer.copy_(tensor)
            return take(*static)

        return replay

    return [replay_of(take, static) for (take, _), static in zip(steps, statics, strict=True)], 123
