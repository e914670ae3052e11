"""One training step: precision and execution mode of a cell. The seam where other modes of execution go."""

import functools
import os
import time
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rresnet import scratch
from rresnet.cell import Cell
from rresnet.training.inputs import Batch, Raw

Step = Callable[..., torch.Tensor]  # the tensors of a batch, as `Inputs.epoch` gives them -> loss []
Load = Callable[..., Batch]  # the same -> images and labels on the device

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def set_switches(cell: Cell) -> None:
    """Set PyTorch's process-wide switches as the cell has them, its precision so that it is what really runs.

    `fp32` is IEEE everywhere; cuDNN's convolutions would otherwise run in TF32. The blog's script leaves matrix
    products at PyTorch's default, IEEE, and so does its recipe.
    """
    tf32 = cell.precision == "tf32"
    cudnn: Any = torch.backends.cudnn  # its precision switches are missing from the annotations
    cudnn.conv.fp32_precision = "tf32" if tf32 else "ieee"
    torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 and cell.recipe != "blog" else "ieee"
    cudnn.benchmark = cell.cudnn_benchmark
    mkldnn: Any = torch.backends.mkldnn
    mkldnn.conv.fp32_precision = mkldnn.matmul.fp32_precision = "ieee"


def precision_in_effect(cell: Cell) -> tuple[str, str, str | None]:
    """What PyTorch's switches say now: fp32 arithmetic of convolutions, of matrix products, and autocast's type."""
    backends: Any = torch.backends
    conv, matmul = (
        (backends.cudnn.conv, backends.cuda.matmul)
        if cell.device == "gpu"
        else (backends.mkldnn.conv, backends.mkldnn.matmul)
    )
    dtype = str(_AUTOCAST[cell.precision]).removeprefix("torch.") if cell.precision in _AUTOCAST else None
    return conv.fp32_precision, matmul.fp32_precision, dtype


def autocast(cell: Cell) -> torch.autocast:
    """The context in which the cell's forward pass runs."""
    kind = "cuda" if cell.device == "gpu" else "cpu"
    return torch.autocast(
        kind, dtype=_AUTOCAST.get(cell.precision, torch.bfloat16), enabled=cell.precision in _AUTOCAST
    )


class Eager:
    """The step as the blog writes it, operation by operation."""

    held_bytes = 0  # device memory that the step keeps for itself between calls
    compile_seconds: float | None = None  # that making it ready took; None also once a trial has told it
    compile_cache: str | None = None  # "warm" where the compiler found all it needed on disk, else "cold"

    def __init__(self, cell: Cell, model: nn.Module, optimizer: torch.optim.Optimizer, load: Load) -> None:
        self.model, self.optimizer = model, optimizer
        # fp16's range is too small for gradients: they are scaled up and back (Micikevicius et al. 2018). Else a no-op.
        self.scaler = torch.amp.GradScaler("cuda", enabled=cell.precision == "fp16")
        loss_fn = nn.CrossEntropyLoss()

        def forward(*raw: torch.Tensor) -> torch.Tensor:
            images, labels = load(*raw)
            with autocast(cell):
                loss: torch.Tensor = loss_fn(model(images), labels)
            return loss

        self.forward: Step = forward

    def __call__(self, *raw: torch.Tensor) -> torch.Tensor:
        """Take one step."""
        return self.train(self.forward, *raw)

    def train(self, forward: Step, *raw: torch.Tensor) -> torch.Tensor:
        """One step of the optimizer down the gradient of `forward`."""
        loss = forward(*raw)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(loss))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()


class Prepared(Eager):
    """A step that is made ready, compiled or captured, for batches of one size.

    A batch of another size, an epoch's last, is trained on eagerly: it is not dropped, nor a reason to compile again.
    Making ready takes steps, and undoes them.
    """

    def __init__(
        self,
        cell: Cell,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        load: Load,
        example: Raw,
        capture: "Capture | None" = None,
    ) -> None:
        """Make ready for batches like `example`; `capture`, where given, makes one graph of the whole step."""
        super().__init__(cell, model, optimizer, load)
        self._shapes = [tensor.shape for tensor in example]
        start, state = time.perf_counter(), State(model, optimizer)
        compiler = Compiler() if cell.execution == "compile" else None
        forward = compiler.compile(self.forward) if compiler else self.forward
        self._step: Step = functools.partial(self.train, forward)
        if capture:
            self._step, self.held_bytes = capture(self._step, example, state.restore)
        else:
            self._step(*example)
        state.restore()
        self.compile_seconds = time.perf_counter() - start
        self.compile_cache = compiler.cache if compiler else None

    def __call__(self, *raw: torch.Tensor) -> torch.Tensor:
        """Take one step."""
        if [tensor.shape for tensor in raw] != self._shapes:
            return super().__call__(*raw)
        return self._step(*raw)


class Compiler:
    """TorchInductor, with its cache in the user's cache folder, unless TORCHINDUCTOR_CACHE_DIR says otherwise."""

    def __init__(self) -> None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(scratch.cache_folder() / "inductor"))
        self._before = self._seen()

    @staticmethod
    def compile(forward: Step) -> Step:
        """`forward` as it will be compiled at its first call, for the shapes of that call alone.

        PyTorch keeps what it compiled by code object, and gives up after eight of one: the code is copied, so that the
        shapes of one cell have nothing to do with those of another.
        """
        f: Any = forward
        own = types.FunctionType(f.__code__.replace(), f.__globals__, f.__name__, f.__defaults__, f.__closure__)
        result: Step = torch.compile(own, fullgraph=True, dynamic=False)
        return result

    @property
    def cache(self) -> str:
        """Whether all that was compiled since lay in the cache: "warm", else "cold", also where the cache is off."""
        hits, misses = (now - before for now, before in zip(self._seen(), self._before, strict=True))
        return "warm" if hits and not misses else "cold"

    @staticmethod
    def _seen() -> tuple[int, int]:
        """Hits and misses so far."""
        from torch._dynamo.utils import counters

        hits = counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"]
        return int(hits), int(counters["inductor"]["fxgraph_cache_miss"] + counters["inductor"]["fxgraph_cache_bypass"])


Capture = Callable[[Step, Raw, Callable[[], None]], tuple[Step, int]]  # step, example, restore -> replay, bytes held
CAPTURE_WARMUP_STEPS = 3  # on a side stream, as PyTorch's notes on CUDA graphs ask for


def capture(step: Step, example: Raw, restore: Callable[[], None]) -> tuple[Step, int]:
    """Record `step` as one CUDA graph; what replays it, and the bytes of device memory that the graph keeps.

    Args:
        step: the whole step, whose only inputs are its tensors.
        example: tensors of the shapes to capture.
        restore: puts back what the steps before the capture have changed, and drops the gradients, so that the graph
            makes its own.
    """
    static = [tensor.to("cuda", copy=True) for tensor in example]
    side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(CAPTURE_WARMUP_STEPS):
            step(*static)
    torch.cuda.current_stream().wait_stream(side)
    restore()
    graph, before = torch.cuda.CUDAGraph(), torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with torch.cuda.graph(graph):
        loss = step(*static)
    held = torch.cuda.max_memory_allocated() - before

    def replay(*raw: torch.Tensor) -> torch.Tensor:
        for buffer, tensor in zip(static, raw, strict=True):
            buffer.copy_(tensor, non_blocking=True)
        graph.replay()
        return loss.clone()  # the next replay writes over it

    return replay, held


def build(
    cell: Cell, model: nn.Module, optimizer: torch.optim.Optimizer, load: Load, example: Callable[[], Raw]
) -> Eager:
    """The cell's training step; what has to be made ready for its shapes is, with an `example` of its batches."""
    if cell.execution == "eager":
        return Eager(cell, model, optimizer, load)
    # On a GPU a compiled step is captured too: the compiler fuses kernels, the graph spares their launches.
    return Prepared(cell, model, optimizer, load, example(), capture if cell.device == "gpu" else None)


class State:
    """A copy of all that a step changes, so that a warm-up can be undone and has not trained the model."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None
    ) -> None:
        self._optimizer, self._scaler = optimizer, scaler
        self._scaling = scaler.state_dict() if scaler else {}
        self._copies = [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
        self._before = {id(t): t.clone() for t in optimizer_tensors(optimizer)}
        self._random = torch.get_rng_state()
        self._cuda_random = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    @torch.no_grad()
    def restore(self) -> None:
        """Write the copies back in place: whoever holds the tensors (a captured graph, DDP) goes on holding them."""
        for tensor, copy in self._copies:
            tensor.copy_(copy)
            tensor.grad = None
        for tensor in optimizer_tensors(self._optimizer):  # Adam's state starts at zero when it did not exist yet
            before = self._before.get(id(tensor))
            tensor.zero_() if before is None else tensor.copy_(before)
        if self._scaler and self._scaling:  # empty where it is off
            self._scaler.load_state_dict(self._scaling)
        torch.set_rng_state(self._random)
        torch.cuda.set_rng_state_all(self._cuda_random)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The tensors of the optimizer's state."""
    return [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
