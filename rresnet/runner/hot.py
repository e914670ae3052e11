"""The cells that a process has built and keeps hot, and how much memory they leave."""

import functools
import gc
from collections import OrderedDict
from collections.abc import Callable

import psutil
import ray
import torch

from rresnet.cell import Cell, Device
from rresnet.data import ImageData
from rresnet.training import inputs
from rresnet.training.workbench import Workbench

MEMORY_RESERVE = 0.25  # share of the memory that must be free before another cell is built beside the hot ones


@functools.cache
def images_of(ref: "ray.ObjectRef[ImageData]") -> ImageData:
    """The data set behind `ref`; fetched once in this process, which has only this one."""
    images: ImageData = ray.get(ref)
    return images


class HotCells:
    """The cells this process has built, least recently used first."""

    def __init__(self) -> None:
        self._benches: OrderedDict[str, Workbench] = OrderedDict()

    @property
    def count(self) -> int:
        """How many cells are hot."""
        return len(self._benches)

    def __contains__(self, cell: Cell) -> bool:
        """Whether the cell is hot."""
        return cell.cell_id in self._benches

    def bench(self, cell: Cell, build: Callable[[], Workbench]) -> Workbench:
        """The cell's workbench, built on its first use; anew each time if the cell trains epochs, from its seed."""
        if cell.epochs:
            return build()
        if cell not in self:
            self._benches[cell.cell_id] = build()
        self._benches.move_to_end(cell.cell_id)
        return self._benches[cell.cell_id]

    def drop(self) -> None:
        """Free the cell that was used least recently."""
        self._benches.popitem(last=False)
        _collect()

    def clear(self) -> None:
        """Free all cells, and the data on the device."""
        self._benches.clear()
        inputs.resident.cache_clear()
        _collect()


def give_back(cell: Cell) -> None:
    """Free what training the cell has left, except what stays hot: another process may need it next."""
    if cell.epochs:
        _collect()
    torch.cuda.empty_cache()


def _collect() -> None:
    gc.collect()  # a network and DDP refer to each other
    torch.cuda.empty_cache()


def free_memory_share(device: Device) -> float:
    """The free share of the device's memory, whoever holds the rest; what PyTorch only caches is given back first."""
    if device == "gpu":
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return free / total
    memory = psutil.virtual_memory()
    return memory.available / memory.total
