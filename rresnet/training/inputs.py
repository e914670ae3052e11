"""The two input paths: the blog's per-image DataLoader, and the data set resident on the device.

A path gives tensors of a batch (`Inputs.epoch`), and turns them into images and labels on the device (`Inputs.load`).
The second part belongs to the step: an execution mode may compile or capture it with the rest.
"""

import functools
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import transforms

from rresnet.cell import Cell
from rresnet.data import Split

Batch = tuple[torch.Tensor, torch.Tensor]  # images float [N, 3, S, S] normalised to -1 .. 1, labels int64 [N]
Raw = tuple[torch.Tensor, ...]  # what `load` takes: (images, labels) on the host, or (indices int64 [N],) on the device
EVALUATED_AT_ONCE = 500  # test images


class EpochSampler(Sampler[int]):
    """Indices of one worker's share of an epoch, in an order drawn anew for each epoch from the seed.

    With one worker it draws what `RandomSampler` draws from the same generator. With several, all draw the same order
    and each takes every world-th index; up to world - 1 images are left out, so that every worker takes the same number
    of steps and no image is used twice. A last batch of a single image is left out too: BatchNorm can't train on it.
    """

    def __init__(self, images: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        share = images // world
        self.length = share - 1 if share % batch_size == 1 and share > 1 else share
        self.images, self.rank, self.world = images, rank, world
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.length

    def indices(self) -> torch.Tensor:
        """The next epoch's indices, int64 [length]."""
        return torch.randperm(self.images, generator=self.generator)[self.rank :: self.world][: self.length]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices().tolist())


class _BlogImages(Dataset[tuple[torch.Tensor, int]]):
    """The blog's data set: each image through Pillow, ToTensor and Normalize; grey ones widened to three channels."""

    def __init__(self, split: Split) -> None:
        self.split = split
        widen = [transforms.Grayscale(3)] if split.images.shape[1] == 1 else []
        self.transform = transforms.Compose([*widen, transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        pixels = self.split.images[index]
        image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        return self.transform(image), int(self.split.labels[index])


class Inputs:
    """Batches of one split for one cell."""

    def __init__(self, split: Split, cell: Cell, device: torch.device, rank: int = 0, world: int = 1) -> None:
        self.sampler = EpochSampler(len(split.labels), cell.batch_size, cell.seed, rank, world)
        self._cell, self._device, self._split = cell, device, split
        self._resident = resident(split, device) if cell.input == "resident" else None

    @property
    def images_per_epoch(self) -> int:
        """Images one worker trains on in an epoch."""
        return len(self.sampler)

    def epoch(self) -> Iterator[Raw]:
        """The batches of the next epoch, for `load`; the last one may be short."""
        if self._resident:
            for indices in torch.split(self.sampler.indices().to(self._device), self._cell.batch_size):
                yield (indices,)
        else:
            yield from DataLoader(_BlogImages(self._split), batch_size=self._cell.batch_size, sampler=self.sampler)

    def forever(self) -> Iterator[Raw]:
        """Batches of epoch after epoch."""
        while True:
            yield from self.epoch()

    def examples(self) -> list[Raw]:
        """A batch of each size that occurs: a whole one, and a short one if the last of an epoch is shorter."""
        whole = next(self.epoch())
        short = self.images_per_epoch % self._cell.batch_size
        return [whole, tuple(tensor[:short] for tensor in whole)] if 0 < short < len(whole[0]) else [whole]

    def load(self, *raw: torch.Tensor) -> Batch:
        """A batch's images, normalised and in the cell's layout, and labels, on the device."""
        if self._resident:
            (indices,), (images, labels) = raw, self._resident
            images, labels = normalise(images[indices]), labels[indices]
        else:
            images, labels = (tensor.to(self._device) for tensor in raw)
        return images.contiguous(memory_format=memory_format(self._cell)), labels


def memory_format(cell: Cell) -> torch.memory_format:
    """The layout of the cell's images and weights."""
    return torch.channels_last if cell.channels_last else torch.contiguous_format


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 [N, C, S, S] to float [N, 3, S, S] in -1 .. 1, as ToTensor and Normalize(0.5, 0.5) do."""
    return images.to(torch.float32).div_(127.5).sub_(1.0).expand(-1, 3, -1, -1)


def evaluation_batches(split: Split, cell: Cell, device: torch.device) -> Iterator[Batch]:
    """Every image of `split` once, in order."""
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    for start in range(0, len(labels), EVALUATED_AT_ONCE):
        batch = normalise(images[start : start + EVALUATED_AT_ONCE].to(device))
        yield batch.contiguous(memory_format=memory_format(cell)), labels[start : start + EVALUATED_AT_ONCE].to(device)


@functools.cache
def resident(split: Split, device: torch.device) -> Batch:
    """The split as uint8 images and labels on `device`, shared by all cells of the process."""
    return torch.tensor(split.images, device=device), torch.tensor(split.labels, device=device)
