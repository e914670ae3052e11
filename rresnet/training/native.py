"""Kernels of a CPU in C++: compiled once on a machine, and run by PyTorch's own threads.

They are operators of PyTorch, so that its profiler tells of them.
"""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch

from rresnet.training import compilers

_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
types = tuple(_NAMES)  # of the tensors that these take
_ROWS = 3  # of `channels` floats, and two more for each thread: what `norm_backward` needs to work with

torch.library.define(
    "rresnet::norm",
    "(Tensor x, Tensor? beside, Tensor(a!) y, Tensor weight, Tensor bias, Tensor(b!) mean, Tensor(c!) scale, "
    "Tensor(d!) running_mean, Tensor(e!) running_var, float momentum, float eps, float floor) -> ()",
)
torch.library.define(
    "rresnet::norm_backward",
    "(Tensor gradient, Tensor? also, Tensor x, Tensor? y, Tensor(a!) of_sum, Tensor(b!) of_x, Tensor weight, "
    "Tensor bias, Tensor mean, Tensor scale, Tensor(c!) of_weight, Tensor(d!) of_bias, float floor) -> ()",
)
torch.library.define(
    "rresnet::add_rows",
    "(Tensor source, Tensor(a!) target, Tensor table, int rows, int items, int channels, int source_step, "
    "int target_step) -> ()",
)
norm, norm_backward = torch.ops.rresnet.norm.default, torch.ops.rresnet.norm_backward.default
add_rows = torch.ops.rresnet.add_rows.default


@functools.cache
def library() -> ctypes.CDLL:
    """The kernels, compiled where that was not done on this machine. Raises RuntimeError, which says what to do."""
    return compilers.native(Path(__file__).with_name("native.cpp"))


@torch.library.impl("rresnet::norm", "cpu")
def _norm(x: torch.Tensor, *others: Any) -> None:
    _call("norm", x, x, *others)


@torch.library.impl("rresnet::norm_backward", "cpu")
def _norm_backward(gradient: torch.Tensor, also: torch.Tensor | None, x: torch.Tensor, *others: Any) -> None:
    _call("norm_backward", x, gradient, also, x, *others)


def _call(name: str, x: torch.Tensor, *args: torch.Tensor | float | None) -> None:
    """Call a function of the library for images like x, [N, C, H, W], which are tables of N * H * W pixels."""
    channels, threads = x.shape[1], torch.get_num_threads()
    room = torch.empty((_ROWS + 2 * threads) * channels)
    function = getattr(library(), f"{name}_{_NAMES[x.dtype]}")
    sizes = ctypes.c_int(threads), ctypes.c_long(x.numel() // channels), ctypes.c_long(channels)
    function(*sizes, *map(_as_c, args), _as_c(room))


@torch.library.impl("rresnet::add_rows", "cpu")
def _add_rows(
    source: torch.Tensor, target: torch.Tensor, table: torch.Tensor, rows: int, items: int, channels: int,
    source_step: int, target_step: int,
) -> None:  # fmt: skip
    function = getattr(library(), f"add_rows_{_NAMES[source.dtype]}_{_NAMES[target.dtype]}")
    sizes = map(ctypes.c_long, (items, channels, source_step, target_step, rows))
    function(ctypes.c_int(torch.get_num_threads()), *sizes, *map(_as_c, (source, target, table)))


def _as_c(value: torch.Tensor | float | None) -> Any:
    if isinstance(value, float):
        return ctypes.c_float(value)
    return ctypes.c_void_p(None if value is None else value.data_ptr())
