"""The limits that machine and model set: matrix rate, copy rate, and the work of one training step."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from rresnet import hardware
from rresnet.cell import Cell, Precision
from rresnet.training import model as models
from rresnet.training.timing import seconds_of

PROBE_SECONDS = 0.15  # of repeated calls, for each of the two limits
LOOK_SECONDS = 0.6  # allowed for one look at the limits
CALL_SECONDS = 0.02  # a matrix product is made large enough to take this long
SMALLEST_MATRIX, LARGEST_MATRIX = 1024, 16384
# A copy larger than caches hold, and the canary's matrices. A GPU keeps them for good, so a small one gets less.
COPY_BYTES = {"cpu": 128 * 2**20, "cuda": 1024 * 2**20}
COPY_SHARE = 1 / 64  # of a GPU's memory, at most
ADAM_BYTES = 28  # for each parameter: weight, gradient and both moments read, all but the gradient written, in fp32
CANARY_CALLS = 3
CANARY_MATRIX = {"cpu": 1024, "cuda": 8192}
CANARY_MATRIX_OF_SMALL, SMALL_BYTES = 4096, 32 * 2**30

_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The highest rates at which the device did what training consists of."""

    matrix_flops_per_second: float  # of a square matrix product for the given precision, 2 FLOP a multiply-add
    copy_bytes_per_second: float  # of a large copy, bytes read and bytes written


@dataclass(frozen=True, kw_only=True)
class Work:
    """The work of one training step of a model: forward and backward for each image, and the optimizer's."""

    flops: float  # of convolutions and matrix products, 2 a multiply-add
    bytes: float  # that every operation reads and writes in the cell's precision when nothing is fused
    update_bytes: float  # that Adam reads and writes in a whole step


_fastest_looks: dict[tuple[str, Precision, int], Limits] = {}


def seen(kind: str, precision: Precision, threads: int, *, look: bool = False) -> Limits:
    """The fastest of all looks of this process at a device's limits; takes one now if it is the first, or if `look`.

    A machine with neighbours is slow for seconds on end, so one look may find less than a trial then reaches.
    """
    key = (kind, precision, threads)
    if look or key not in _fastest_looks:
        found = measure(kind, precision, threads)
        before = _fastest_looks.get(key, found)
        _fastest_looks[key] = Limits(
            matrix_flops_per_second=max(found.matrix_flops_per_second, before.matrix_flops_per_second),
            copy_bytes_per_second=max(found.copy_bytes_per_second, before.copy_bytes_per_second),
        )
    return _fastest_looks[key]


def measure(kind: str, precision: Precision, threads: int) -> Limits:
    """Take one look at the limits of a device kind ("cpu" or "cuda") with `threads` threads, in under a second."""
    assert torch.get_num_threads() == threads, "the threads that the limit is for must be set"
    device, dtype = torch.device(kind), _DTYPES[precision]
    if kind == "cpu" and not hardware.probe().cpu_bf16:
        dtype = torch.float32  # also for bf16: what such a processor does fastest is to widen it
    with _matrix_precision(precision):
        size, call = SMALLEST_MATRIX, _matrix_product(device, dtype, SMALLEST_MATRIX)
        while _fastest(device, call, CALL_SECONDS) < CALL_SECONDS / 2 and size < LARGEST_MATRIX:
            size *= 2
            call = _matrix_product(device, dtype, size)
        matrix_seconds = _fastest(device, call, PROBE_SECONDS)
    copy_seconds = _fastest(device, _copy(kind), PROBE_SECONDS)
    return Limits(
        matrix_flops_per_second=2 * size**3 / matrix_seconds,
        copy_bytes_per_second=2 * _copied_bytes(kind) / copy_seconds,
    )


def canary(kind: str, half: bool) -> tuple[float, float]:
    """Seconds of one matrix product (bfloat16 if `half`, else fp32) and of one copy: the same work on every call.

    Each is the fastest of `CANARY_CALLS`, since the first finds threads asleep after whatever the process did before.
    On a noisy machine these two tell its state (`docs/measurement.md`).
    """
    device = torch.device(kind)
    calls = _canary_product(kind, torch.bfloat16 if half else torch.float32), _copy(kind)
    product, copy = (min(seconds_of(device, call) for _ in range(CANARY_CALLS)) for call in calls)
    return product, copy


@functools.cache
def _canary_product(kind: str, dtype: torch.dtype) -> Callable[[], object]:
    small = kind == "cuda" and _memory_bytes() < SMALL_BYTES
    size = CANARY_MATRIX_OF_SMALL if small else CANARY_MATRIX[kind]
    return _warmed(torch.device(kind), _matrix_product(torch.device(kind), dtype, size))


def _memory_bytes() -> int:
    """All of the GPU's memory."""
    return torch.cuda.mem_get_info()[1]


def _copied_bytes(kind: str) -> int:
    return min(COPY_BYTES[kind], int(COPY_SHARE * _memory_bytes())) if kind == "cuda" else COPY_BYTES[kind]


@functools.cache
def _copy(kind: str) -> Callable[[], object]:
    source = torch.ones(_copied_bytes(kind), dtype=torch.uint8, device=kind)
    target = torch.empty_like(source)
    return _warmed(torch.device(kind), lambda: target.copy_(source))


def _warmed(device: torch.device, call: Callable[[], object]) -> Callable[[], object]:
    seconds_of(device, call)  # first use: pages, kernels, workspaces
    return call


def _matrix_product(device: torch.device, dtype: torch.dtype, size: int) -> Callable[[], object]:
    drawn = torch.Generator(device).manual_seed(0)  # not from what a model's dropout draws from
    a, b = (torch.randn(size, size, device=device, generator=drawn).to(dtype) for _ in range(2))
    out = torch.empty(size, size, device=device, dtype=dtype)
    return _warmed(device, lambda: torch.mm(a, b, out=out))


def _fastest(device: torch.device, call: Callable[[], object], seconds: float) -> float:
    end, best = time.perf_counter() + seconds, float("inf")
    while time.perf_counter() < end or best == float("inf"):
        best = min(best, seconds_of(device, call))
    return best


@contextlib.contextmanager
def _matrix_precision(precision: Precision) -> Iterator[None]:
    """Let matrix products in the block run in TF32 if that is the precision, else in IEEE fp32.

    The blog's recipe leaves them in IEEE fp32 when its convolutions run in TF32; the limit is still TF32's.
    """
    matmul: Any = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def work(cell: Cell, classes: int) -> Work | None:
    """The work of one training step, counted on PyTorch's meta device, which computes nothing.

    PyTorch's FLOP counter counts the operations that the cell's step really has: a convolution computed as a product
    has none with the padding. None for a model that can't be counted this way.
    """
    batch_size = max(2, cell.batch_size)  # a batch of one has no statistics over a map of one pixel
    try:
        network = _on_meta(replace(cell, execution="eager"), classes)  # as whole operations, however they run
        with torch.device("meta"):
            images = torch.empty(batch_size, 3, cell.image_size, cell.image_size)
            labels = torch.empty(batch_size, dtype=torch.long)
        with FlopCounterMode(display=False) as flops, _ByteCounter() as traffic:
            torch.autograd.backward(nn.functional.cross_entropy(network(images), labels))
    except Exception:  # a model of the user's own may raise anything there
        return None
    share = 0.5 if cell.precision in ("bf16", "fp16") else 1.0  # of what was counted, in fp32
    return Work(
        flops=flops.get_total_flops() / batch_size,
        bytes=share * traffic.bytes / batch_size,
        update_bytes=ADAM_BYTES * sum(parameter.numel() for parameter in network.parameters()),
    )


def _on_meta(cell: Cell, classes: int) -> nn.Module:
    """The cell's model on the meta device; one that can't be made there, as it asks for values, is brought there."""
    try:
        with torch.device("meta"):
            return models.of(cell, classes)
    except Exception:
        with torch.random.fork_rng(devices=[]):
            return models.of(cell, classes).to("meta")


class _ByteCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of what each operation reads and writes in fp32; views move nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func is not torch.ops.aten._unsafe_view.default:  # a view for all but autograd
            touched = [*args, *(kwargs or {}).values(), *(result if isinstance(result, tuple | list) else [result])]
            self.bytes += sum(t.numel() * t.element_size() for t in touched if isinstance(t, torch.Tensor))
        return result
