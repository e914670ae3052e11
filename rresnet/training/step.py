"""One training step, in the precision and execution mode of a cell. Other modes of execution would go here."""

import functools
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from rresnet.cell import Cell
from rresnet.training import compilers
from rresnet.training.inputs import Batch, Raw
from rresnet.training.layers import AllLayers, Copies, EachLayer

Step = Callable[..., torch.Tensor]  # the tensors of a batch, as `Inputs.epoch` gives them -> loss []
Load = Callable[..., Batch]  # the same -> images and labels on the device

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def set_switches(cell: Cell) -> None:
    """Set PyTorch's process-wide switches for the cell, so that its precision is what really runs.

    `fp32` is IEEE everywhere; cuDNN's convolutions and recurrent layers would otherwise run in TF32. The blog's script
    leaves matrix products at PyTorch's default, IEEE, and so does its recipe, unless convolutions are computed as
    products.
    """
    tf32 = cell.precision == "tf32"
    as_written = cell.recipe == "blog" and "linear" not in (cell.pointwise, cell.small_maps)
    cudnn: Any = torch.backends.cudnn  # its precision switches are missing from the annotations
    cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "tf32" if tf32 else "ieee"
    torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 and not as_written else "ieee"
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


def forward_of(cell: Cell, load: Load, layers: EachLayer) -> Step:
    """The forward pass: from what `layers.begin` has returned, and the tensors of a batch, to its loss."""
    loss_fn = nn.CrossEntropyLoss()

    def forward(copies: Copies, *raw: torch.Tensor) -> torch.Tensor:
        images, labels = load(*raw)
        with autocast(cell):
            loss: torch.Tensor = loss_fn(layers.scores(copies, images), labels)
        return loss

    return forward


class Eager:
    """The step as the blog writes it, operation by operation."""

    held_bytes = 0  # device memory that the step keeps for itself between calls
    compile_seconds: float | None = None  # that making it ready took; None also once a trial has reported it
    compile_cache: str | None = None  # "warm" where the compiler found all it needed on disk, else "cold"

    def __init__(self, cell: Cell, model: nn.Module, optimizer: torch.optim.Optimizer, load: Load) -> None:
        self.model, self.optimizer = model, optimizer
        # fp16's range is too small for gradients: they are scaled up and back (Micikevicius et al. 2018). Else a no-op.
        self.scaler = torch.amp.GradScaler("cuda", enabled=cell.precision == "fp16")
        self.forward: Step = functools.partial(forward_of(cell, load, EachLayer(model)), ())

    def __call__(self, *raw: torch.Tensor) -> torch.Tensor:
        """Take one step."""
        return self.train(self.forward, *raw)

    def train(self, forward: Step, *raw: torch.Tensor) -> torch.Tensor:
        """Take one step of the optimizer down the gradient of `forward`."""
        loss = forward(*raw)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(loss))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def rehearse(self, examples: Sequence[Raw]) -> None:
        """Take a step with each and undo them, so that libraries have found what they search for at a new shape."""
        state = State(self.model, self.optimizer, self.scaler)
        for raw in examples:
            self(*raw)
        state.restore()


def layers_of(cell: Cell, model: nn.Module, optimizer: torch.optim.Optimizer) -> EachLayer:
    """How a captured step goes through the model's layers."""
    dtype = _AUTOCAST.get(cell.precision)
    if cell.kernels == "fused":
        compilers.keep_kernels()
        from rresnet.training.captured import FusedLayers  # only here, since Triton isn't everywhere

        return FusedLayers(model, dtype, optimizer)
    if ":" in cell.model:  # the user's own may use its weights in ways that autocast knows and we don't
        return EachLayer(model)
    return AllLayers(model, dtype)


class Prepared(Eager):
    """A step that is made ready, compiled or captured, for whole batches.

    The short batch at an epoch's end is neither dropped nor compiled for: its step is eager, and captured as such if
    that of whole batches is captured. Making ready takes steps, and undoes them.
    """

    def __init__(
        self,
        cell: Cell,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        load: Load,
        examples: Sequence[Raw],
        capture: "Capture | None",
    ) -> None:
        """Make ready for batches like `examples`, the first a whole one; `capture` makes a graph of each one's step."""
        super().__init__(cell, model, optimizer, load)
        start, state = time.perf_counter(), State(model, optimizer)
        compiler = compilers.Inductor() if cell.execution == "compile" else None
        layers = layers_of(cell, model, optimizer) if capture else EachLayer(model)
        plain = forward_of(cell, load, layers)
        whole = compiler.compile(plain) if compiler else plain
        forwards = [whole, *[plain] * (len(examples) - 1)]
        steps: list[Step] = [functools.partial(self._train, layers, forward) for forward in forwards]
        self._whole = whole  # kept: graphs go on using what was compiled
        with warnings.catch_warnings():
            # The compiler looks at the gradient of each input, and the copies of the weights keep none.
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
            if capture:
                steps, self.held_bytes = capture(list(zip(steps, examples, strict=True)), state.restore)
            else:
                for step, example in zip(steps, examples, strict=True):
                    step(*example)
        state.restore()
        self._steps = {_shapes(example): step for step, example in zip(steps, examples, strict=True)}
        self.compile_seconds = time.perf_counter() - start
        self.compile_cache = compiler.cache if compiler else None

    def _train(self, layers: EachLayer, forward: Step, *raw: torch.Tensor) -> torch.Tensor:
        try:
            return self.train(lambda *batch: forward(layers.begin(), *batch), *raw)
        finally:
            layers.finish()  # also where memory was short: a capture can't end before all streams have come together

    def __call__(self, *raw: torch.Tensor) -> torch.Tensor:
        """Take one step."""
        return self._steps.get(_shapes(raw), super().__call__)(*raw)


def _shapes(raw: Raw) -> tuple[torch.Size, ...]:
    return tuple(tensor.shape for tensor in raw)


# Steps with an example each, restore -> what replays each, bytes held.
Capture = Callable[[Sequence[tuple[Step, Raw]], Callable[[], None]], tuple[list[Step], int]]
CAPTURE_WARMUP_STEPS = 3  # on a side stream, as PyTorch's notes on CUDA graphs ask for


def capture(steps: Sequence[tuple[Step, Raw]], restore: Callable[[], None]) -> tuple[list[Step], int]:
    """Record each step as one CUDA graph; return what replays each, and the bytes of GPU memory that the graphs keep.

    The graphs share that memory: each drops the gradients that the one before has left, and reads nothing else of it.

    Args:
        steps: whole steps, whose only inputs are their tensors, with examples of the shapes to capture.
        restore: puts back what the steps before the capture have changed, and drops the gradients, so that the graphs
            make their own.
    """
    statics = [[tensor.to("cuda", copy=True) for tensor in example] for _, example in steps]
    # Captured on this stream, too, and not on the one that PyTorch would take for all graphs: when a graph is freed,
    # PyTorch 2.12 - 2.14 frees cuBLAS's workspace of its stream, which other graphs of that stream go on writing to.
    # Its kernels come before those that a step has on streams beside it.
    side: Any = torch.cuda.Stream(priority=-1)  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for (step, _), static in zip(steps, statics, strict=True):
            for _ in range(CAPTURE_WARMUP_STEPS):
                step(*static)
    torch.cuda.current_stream().wait_stream(side)
    restore()
    pool, before = torch.cuda.graph_pool_handle(), torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    replays = [_captured(step, static, pool, side) for (step, _), static in zip(steps, statics, strict=True)]
    held = torch.cuda.max_memory_allocated() - before
    return replays, held + sum(tensor.nbytes for static in statics for tensor in static)


def _captured(step: Step, static: Sequence[torch.Tensor], pool: Any, stream: Any) -> Step:
    """Capture the step in a graph with memory from `pool`; return what replays it on batches copied into `static`."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        loss = step(*static)

    def replay(*raw: torch.Tensor) -> torch.Tensor:
        for buffer, tensor in zip(static, raw, strict=True):
            buffer.copy_(tensor, non_blocking=True)
        graph.replay()
        return loss.clone()  # the next replay writes over it

    return replay


def build(
    cell: Cell, model: nn.Module, optimizer: torch.optim.Optimizer, load: Load, examples: Callable[[], list[Raw]]
) -> Eager:
    """The cell's training step, ready for batches like the `examples`: a whole one, and a short one if there is any."""
    if cell.execution == "eager":
        made = Eager(cell, model, optimizer, load)
        if cell.device == "gpu":  # cuDNN looks for its kernels at the first batch of each size: not while it is timed
            made.rehearse(examples())
        return made
    # On a GPU a compiled step is captured too: the compiler fuses kernels, the graph spares their launches.
    return Prepared(cell, model, optimizer, load, examples(), capture if cell.device == "gpu" else None)


class State:
    """A copy of all that a step changes, so that a warm-up can be undone and does not train the model."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None
    ) -> None:
        self._optimizer, self._scaler = optimizer, scaler
        self._scaling = scaler.state_dict() if scaler else {}
        self._copies = [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
        # A model may assign a buffer anew instead of writing into it.
        self._buffers = [(module._buffers, dict(module._buffers)) for module in model.modules()]
        self._before = {id(t): t.clone() for t in optimizer_tensors(optimizer)}
        self._random = torch.get_rng_state()
        # A cell on the CPU must not start CUDA, which would take GPU memory.
        cuda_runs: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        self._cuda_random = torch.cuda.get_rng_state_all() if cuda_runs else []

    @torch.no_grad()
    def restore(self) -> None:
        """Write the copies back in place: whoever holds the tensors (a captured graph, DDP) goes on holding them."""
        for held, buffers in self._buffers:
            held.update(buffers)
        for tensor, copy in self._copies:
            tensor.copy_(copy)
            tensor.grad = None
        for tensor in optimizer_tensors(self._optimizer):  # Adam's state starts at zero when it did not exist yet
            before = self._before.get(id(tensor))
            tensor.zero_() if before is None else tensor.copy_(before)
        if self._scaler and self._scaling:  # empty where it is off
            self._scaler.load_state_dict(self._scaling)
        torch.set_rng_state(self._random)
        torch.cuda.set_rng_state_all(self._cuda_random)  # of none where CUDA does not run


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The tensors of the optimizer's state."""
    return [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
