"""Layers of a captured step whose weights are cast, and learn, on streams beside the one that the step waits for.

In the backward pass the layer before goes on from the gradient of a layer's input, so that it can't wait. The gradient
of the weights is for the optimizer alone. Over small maps neither of them fills a GPU; and Adam keeps its memory busy
and little else.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from rresnet.training import adam
from rresnet.training.convolution import PointwiseConv2d

READ_BYTES = 2**28  # of what is still read on the side, at most: its memory can't serve others meanwhile
CHANNELS = 8  # cuDNN's fast kernels take a multiple of so many 16-bit channels

Gradient = Callable[[], torch.Tensor]


class SideStreams:
    """Two streams: one casts weights as a step begins and computes their gradients; the other updates them."""

    def __init__(
        self, weights: Sequence[nn.Parameter], dtype: torch.dtype | None, optimizer: torch.optim.Optimizer
    ) -> None:
        """The weights, in the order in which a step meets them, what to cast them to, and what updates them."""
        self._weights: list[torch.Tensor] = list(weights)
        self._dtype, self._optimizer = dtype, optimizer
        self._first: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._second: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._cast: Any = None  # the event of the last cast, until it has been waited for
        self._gradients: list[torch.Tensor] = []  # kept until the second stream has read them all
        self._reads: deque[tuple[Any, tuple[torch.Tensor, ...]]] = deque()  # what the first reads until an event

    @torch.no_grad()
    def begin(self) -> tuple[torch.Tensor, ...]:
        """Count the step; return what to compute with in place of the weights, if anything."""
        if not self._weights:
            return ()
        dtype, steps = self._dtype, adam.steps_of(self._weights, self._optimizer)
        copies = [torch.empty_like(weight, dtype=dtype).requires_grad_() for weight in self._weights] if dtype else []
        self._first.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._first):
            torch._foreach_add_(steps, 1)
            if copies[1:]:
                torch._foreach_copy_(copies[1:], self._weights[1:])
            self._cast = self._first.record_event()
        if copies:  # with which the step begins at once
            copies[0].copy_(self._weights[0])
        return tuple(copies)

    def ready(self, place: int) -> None:
        """Wait for what stands for the weight of this index."""
        if place and self._cast:
            torch.cuda.current_stream().wait_event(self._cast)
            self._cast = None

    def learn(self, place: int, gradient: Gradient, *reads: torch.Tensor) -> None:
        """Compute the gradient of the weight of this index from `reads`, and update it; the step is done with it."""
        weight = self._weights[place]
        self._first.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._first):
            found = adam.laid_out(gradient(), weight)
        self._second.wait_stream(self._first)
        with torch.cuda.stream(self._second):
            adam.update(weight, found, self._optimizer)
        self._gradients.append(found)
        self._reads.append((self._first.record_event(), reads))
        while sum(tensor.nbytes for _, read in self._reads for tensor in read) > READ_BYTES:
            done, _ = self._reads.popleft()
            torch.cuda.current_stream().wait_event(done)

    def join(self) -> None:
        """Have the current stream wait for all of it."""
        if self._weights:
            torch.cuda.current_stream().wait_stream(self._first)
        if self._gradients:  # else nothing of a capture has come to the second
            torch.cuda.current_stream().wait_stream(self._second)
        self._gradients.clear()
        self._reads.clear()


class SideConv2d(nn.Conv2d):
    """A convolution without a bias that learns on the side, as the weight of index `place`."""

    side: SideStreams
    place: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W] to [N, D, H', W']."""
        self.side.ready(self.place)
        x = x.to(self.weight.dtype)
        if self._meets_one_pixel(x):  # with one tap: the others meet the padding
            rows: torch.Tensor = _Product.apply(x[:, :, 0, 0], self.weight, self.padding, self)
            return rows[:, :, None, None]
        geometry = self.stride, self.padding, self.dilation, False, (0, 0), self.groups
        y: torch.Tensor = _Convolution.apply(x, self.weight, geometry, self)
        return y

    def _meets_one_pixel(self, x: torch.Tensor) -> bool:
        pairs: Any = zip(self.padding, self.kernel_size, self.stride, strict=True)
        once = all(padding < kernel and (1 + 2 * padding - kernel) // stride == 0 for padding, kernel, stride in pairs)
        return x.shape[2:] == (1, 1) and once and self.groups == 1 and self.dilation == (1, 1)


class SidePointwiseConv2d(PointwiseConv2d):
    """The same of 1x1, as a product over pixels."""

    side: SideStreams
    place: int

    def seen(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [N, H, W, C] to those that the stride does not pass over."""
        taken: torch.Tensor = pixels if self.stride == (1, 1) else _Taken.apply(pixels, *self.stride)
        return taken

    def product(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [M, C] to [M, D]."""
        self.side.ready(self.place)
        y: torch.Tensor = _Product.apply(pixels.to(self.weight.dtype), self.weight, (0, 0), self)
        return y


class SideLinear(nn.Linear):
    """A linear layer whose weight learns on the side."""

    side: SideStreams
    place: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., C] to [..., D]."""
        self.side.ready(self.place)
        rows = x.to(self.weight.dtype).reshape(-1, x.shape[-1])
        y: torch.Tensor = _Product.apply(rows, self.weight, (), self).view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


class _Taken(torch.autograd.Function):
    """Every so many rows and columns of pixels [N, H, W, C]; slices would be undone one after another."""

    @staticmethod
    def forward(ctx: Any, pixels: torch.Tensor, down: int, across: int) -> torch.Tensor:
        ctx.shape, ctx.strides = pixels.shape, (down, across)
        return pixels[:, ::down, ::across].contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        down, across = ctx.strides
        whole = gradient.new_zeros(ctx.shape)
        whole[:, ::down, ::across] = gradient
        return whole, None, None


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, geometry: Any, layer: SideConv2d) -> torch.Tensor:
        ctx.geometry, ctx.layer, ctx.channels = geometry, layer, x.shape[1]
        if x.shape[1] < CHANNELS and geometry[-1] == 1 and x.element_size() == 2:
            x, weight = _widened(x), _widened(weight)
        ctx.save_for_backward(x, weight)
        y: torch.Tensor = torch.ops.aten.convolution(x, weight, None, *geometry)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors

        def of(images: bool) -> Any:
            which = images, not images, False
            found = torch.ops.aten.convolution_backward(gradient, x, weight, None, *ctx.geometry, which)
            return found[0 if images else 1][:, : ctx.channels]

        of_x = of(True) if ctx.needs_input_grad[0] else None
        ctx.layer.side.learn(ctx.layer.place, lambda: of(False), gradient, x)
        return of_x, None, None, None


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    """With channels of zeros after its own: of images or of weights, both channels-last."""
    shape = len(tensor), CHANNELS, *tensor.shape[2:]
    wide = torch.empty(shape, dtype=tensor.dtype, device=tensor.device, memory_format=torch.channels_last).zero_()
    wide[:, : tensor.shape[1]] = tensor
    return wide


class _Product(torch.autograd.Function):
    """Rows [M, C] times a weight [D, C], or what it has at one tap of its kernel: to [M, D]."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, tap: tuple[int, ...], layer: Any) -> torch.Tensor:
        ctx.tap, ctx.layer = tap, layer
        ctx.save_for_backward(x, weight)
        at: Any = (..., *tap)
        y: torch.Tensor = linear(x, weight[at])
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        tap: Any = (..., *ctx.tap)

        def of_weight() -> torch.Tensor:
            product: torch.Tensor = gradient.t() @ x
            if product.numel() == weight.numel():
                return product.as_strided(weight.shape, weight.stride())
            whole = torch.zeros_like(weight)
            whole[tap] = product
            return whole

        of_x = gradient @ weight[tap] if ctx.needs_input_grad[0] else None
        ctx.layer.side.learn(ctx.layer.place, of_weight, gradient, x)
        return of_x, None, None, None
