"""CUDA's streams followed on a processor: is memory of one stream read, written or given away before another is done?

Everything runs at once and in order, as on one stream. Vector clocks tell what the streams would have guaranteed.
"""

import contextlib
import itertools
from dataclasses import dataclass, field

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

# What each kernel writes, by the names of its arguments; the others it reads, and these as well where it adds to them.
WRITTEN = {
    "norm_small": {"y", "mean", "scale", "running_mean", "running_var"},
    "norm_sums": {"sums"},
    "norm_large": {"y", "mean", "scale", "running_mean", "running_var"},
    "norm_small_backward": {"of_sum", "of_x", "of_weight", "of_bias"},
    "norm_sums_backward": {"of_sum", "sums"},
    "norm_large_backward": {"of_x", "of_weight", "of_bias"},
    "max_pool": {"y", "taps"},
    "max_pool_backward": {"of_x"},
    "adam": {"weight", "mean", "square"},
}


class Stream:
    """In place of a stream: it knows how far each of the others is before its own next operation."""

    numbers = itertools.count()

    def __init__(self, priority=0):
        self.number, self.clock = next(self.numbers), {}

    def record_event(self):
        return dict(self.clock)

    def wait_event(self, event):
        self.clock = {number: max(self.clock.get(number, 0), event.get(number, 0)) for number in self.clock | event}

    def wait_stream(self, other):
        self.wait_event(other.record_event())

    def is_after(self, use):
        return self.clock.get(use.stream, 0) >= use.time


@dataclass(frozen=True)
class Use:
    """One operation's use of some memory."""

    stream: int
    time: int
    operation: str


@dataclass
class Memory:
    """A storage: who allocated it, who wrote it last, and who has read it since."""

    alive: StorageWeakRef
    owner: int
    written: Use | None = None
    read: list[Use] = field(default_factory=list)
    last_of_each: dict[int, Use] = field(default_factory=dict)


class Watch(TorchDispatchMode):
    """Watches all operations in the block; `hazards` are those that the streams don't keep apart."""

    def __init__(self):
        super().__init__()
        self.streams, self.hazards, self.operations = [Stream()], [], 0
        self._memory, self._freed = {}, []

    @contextlib.contextmanager
    def on(self, stream):
        self.streams.append(stream)
        try:
            yield
        finally:
            self.streams.pop()

    def _of(self, tensor):
        storage = tensor.untyped_storage()
        new = Memory(StorageWeakRef(storage), self.streams[-1].number)
        return self._memory.setdefault(storage._cdata, new)

    def _reuse(self):
        """What is free goes to the next allocation of the stream that it came from, as PyTorch's allocator has it."""
        for key, memory in list(self._memory.items()):
            if memory.alive.expired():
                self._freed.append(self._memory.pop(key))
        current = self.streams[-1]
        for memory in [memory for memory in self._freed if memory.owner == current.number]:
            self._freed.remove(memory)
            early = [use for use in memory.last_of_each.values() if not current.is_after(use)]
            self.hazards += [f"memory is given away while {use.operation} uses it" for use in early]

    def happens(self, operation, reads, writes):
        """An operation on the current stream."""
        current = self.streams[-1]
        current.clock[current.number] = current.clock.get(current.number, 0) + 1
        use = Use(current.number, current.clock[current.number], operation)
        self.operations += 1
        for memory in map(self._of, reads):
            if memory.written and not current.is_after(memory.written):
                self.hazards.append(f"{operation} reads what {memory.written.operation} is still writing")
            memory.read.append(use)
            memory.last_of_each[use.stream] = use
        for memory in map(self._of, writes):
            before = [*memory.read, *([memory.written] if memory.written else [])]
            early = [other for other in before if not current.is_after(other)]
            self.hazards += [f"{operation} writes over what {other.operation} uses" for other in early]
            memory.written, memory.read = use, []
            memory.last_of_each[use.stream] = use

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self._reuse()
        result = func(*args, **kwargs)
        reads, writes = [], []
        for place, argument in enumerate(func._schema.arguments):
            given = args[place] if place < len(args) else kwargs.get(argument.name)
            written = argument.alias_info is not None and argument.alias_info.is_write
            (writes if written else reads).extend(t for t in tree_leaves(given) if isinstance(t, torch.Tensor))
        if func._schema.name == "aten::convolution_backward":  # neither gradient needs what it is the gradient of
            gradient, images, weight, *_, (of_images, of_weight, _) = args
            reads = [gradient, *[images] * of_weight, *[weight] * of_images]
        known = {tensor.untyped_storage()._cdata for tensor in reads + writes}
        made = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        made = [tensor for tensor in made if tensor.untyped_storage()._cdata not in known]
        if "empty" in func._schema.name:
            list(map(self._of, made))
        elif writes or made:  # else it is a view
            self.happens(func._schema.name, reads, [*writes, *made])
        return result

    def launch(self, kernel, grid, *args, **sizes):
        """In place of `kernels.launch`: what a kernel computes plays no part here, and interpreting it takes long."""
        name, given = kernel.fn.__name__, dict(zip(kernel.arg_names, args, strict=False))
        tensors = {key: value for key, value in given.items() if isinstance(value, torch.Tensor)}
        if tensors.get("of_sum") is not None and tensors["of_sum"] is tensors["gradient"]:
            del tensors["of_sum"]  # which is only another name for it
        kept = {"running_mean", "running_var"} | ({"weight", "mean", "square"} if name == "adam" else set())
        reads = [value for key, value in tensors.items() if key not in WRITTEN[name] or key in kept]
        writes = [value for key, value in tensors.items() if key in WRITTEN[name]]
        self.happens(name, reads, writes)
        with torch.no_grad(), _disable_current_modes():
            for value in writes:
                value.zero_()
