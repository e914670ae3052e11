"""What convolutions over small maps multiply, on a CPU: rows of channels that are copied and added up in C++.

The same as the PyTorch operations of `rresnet.training.convolution`, which go through the memory several times.
"""

import functools
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain, product
from typing import Any, NamedTuple

import torch
from torch import nn

from rresnet.training import native
from rresnet.training.convolution import Dimension, SmallMapConv2d


class Move(NamedTuple):
    """Which rows of an item of one tensor each row of the same item of another is the sum of."""

    table: torch.Tensor  # int64: the rows of the other; where the rows that each is the sum of begin; these rows
    rows: int  # of the other, in an item
    steps: tuple[int, int]  # rows from one item to the next, of both

    def __call__(
        self, source: torch.Tensor, items: int, channels: int, shape: Sequence[int], dtype: torch.dtype
    ) -> torch.Tensor:
        """The other tensor, of that shape, from `source`."""
        target = torch.empty(shape, dtype=dtype)
        native.add_rows(source.contiguous(), target, self.table, self.rows, items, channels, *self.steps)
        return target


def _there_and_back(
    pairs: Sequence[tuple[int, int]], here: Iterable[int], there: Iterable[int], steps: tuple[int, int]
) -> tuple[Move, Move]:
    """Moves between two tensors, from pairs of their rows in an item, all rows that an item has, and the steps."""
    back = [(other, one) for one, other in pairs]
    return _move(pairs, there, steps), _move(back, here, (steps[1], steps[0]))


def _move(pairs: Iterable[tuple[int, int]], rows: Iterable[int], steps: tuple[int, int]) -> Move:
    sources: dict[int, list[int]] = {row: [] for row in rows}
    for source, row in pairs:
        sources[row].append(source)
    starts = accumulate(map(len, sources.values()), initial=0)
    return Move(torch.tensor([*sources, *starts, *chain.from_iterable(sources.values())]), len(sources), steps)


@functools.cache
def of_whole(rows: Dimension, columns: Dimension, kernels: int) -> tuple[Move, Move]:
    """From taps [D, KH, KW, C] to the matrix [H' W', D, H W, C] of `whole_of`, for D kernels, and back."""
    taps, pixels = rows.kernel * columns.kernel, rows.size * columns.size
    pairs = []
    for output, ((tap, pixel), (beside, next_to)) in enumerate(product(rows.of_outputs(), columns.of_outputs())):
        for (k, i), (m, j) in product(_pairs(tap, pixel), _pairs(beside, next_to)):
            pairs.append((k * columns.kernel + m, output * kernels * pixels + i * columns.size + j))
    outputs = rows.outputs * columns.outputs
    there = [output * kernels * pixels + pixel for output in range(outputs) for pixel in range(pixels)]
    return _there_and_back(pairs, range(taps), there, (taps, pixels))


@functools.cache
def of_patches(rows: Dimension, columns: Dimension) -> tuple[Move, Move]:
    """From pixels [N, H, W, C] to the patches [N, H' W', KH KW, C] of `patches_of`, and back."""
    taps, pixels = rows.kernel * columns.kernel, rows.size * columns.size
    pairs = []
    for tap, ((row, high), (column, wide)) in enumerate(product(rows.of_taps(), columns.of_taps())):
        for (k, i), (m, j) in product(_pairs(row, high), _pairs(column, wide)):
            pairs.append((i * columns.size + j, (k * columns.outputs + m) * taps + tap))
    patches = rows.outputs * columns.outputs * taps
    return _there_and_back(pairs, range(pixels), range(patches), (pixels, patches))


def _pairs(one: slice, other: slice) -> Iterable[tuple[int, int]]:
    ranges = (range(of.stop)[of] for of in (one, other))
    return zip(*ranges, strict=True)


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, source: torch.Tensor, moves: tuple[Move, Move], shape: Sequence[int], dtype: torch.dtype
    ) -> torch.Tensor:
        """From a source [items, ..., channels]."""
        sizes = len(source), source.shape[-1]
        ctx.back, ctx.of_source = moves[1], (*sizes, source.shape, source.dtype)
        return moves[0](source, *sizes, shape, dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return ctx.back(gradient, *ctx.of_source), None, None, None


class NativeSmallMapConv2d(SmallMapConv2d):
    """The same, with rows that are moved in C++."""

    def whole(
        self, taps: torch.Tensor, rows: Sequence[int], columns: Sequence[int], dtype: torch.dtype
    ) -> torch.Tensor:
        """What `whole_of` gives."""
        if not {taps.dtype, dtype} <= set(native.types):
            return super().whole(taps, rows, columns, dtype)
        down, across = Dimension(*rows), Dimension(*columns)
        shape = down.outputs * across.outputs * len(taps), down.size * across.size * taps.shape[3]
        result: torch.Tensor = _Moved.apply(taps, of_whole(down, across, len(taps)), shape, dtype)
        return result

    def patches(self, pixels: torch.Tensor, rows: Sequence[int], columns: Sequence[int]) -> torch.Tensor:
        """What `patches_of` gives."""
        if pixels.dtype not in native.types:
            return super().patches(pixels, rows, columns)
        down, across = Dimension(*rows), Dimension(*columns)
        shape = len(pixels), down.outputs, across.outputs, down.kernel, across.kernel, pixels.shape[3]
        result: torch.Tensor = _Moved.apply(pixels, of_patches(down, across), shape, pixels.dtype)
        return result


def natively(model: nn.Module) -> None:
    """Have the model's convolutions over small maps move rows in C++, in place."""
    for module in model.modules():
        if type(module) is SmallMapConv2d:
            module.__class__ = NativeSmallMapConv2d
