"""GPU kernels in Triton, which comes with PyTorch's CUDA: for channels-last images as tables of pixels, [N * H * W, C].

Sums are in float32 and in a fixed order. `TALL` and `WIDE` are the pixels and channels that a program holds at a time.
A ReLU is a `floor` of 0, and none one of minus infinity: each kernel that differs takes long to compile.
"""

import subprocess
from typing import Any

import triton
from triton import language as tl
from triton.errors import TritonError

_AT_ONCE = tl.constexpr(64)  # parts whose sums a program adds up at a time


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **sizes: int) -> None:
    """Launch a kernel on the current stream, which is compiled first where it has not been for such arguments.

    Raises RuntimeError, which says what to do, if it can't be compiled here.
    """
    try:
        kernel[grid](*args, **sizes, enable_fp_fusion=True)  # the default for now, but Triton warns where it isn't said
    except (TritonError, subprocess.CalledProcessError) as error:
        what = f"the fused kernel {kernel.__name__} can't be made here ({type(error).__name__}: {error})"
        raise RuntimeError(f"{what}: use --kernels pytorch") from error


@triton.jit
def _channels(channels, WIDE: tl.constexpr):
    """This program's channels, and which of them there are."""
    c = tl.program_id(0) * WIDE + tl.arange(0, WIDE)
    return c, c < channels


@triton.jit
def _of_each(first, second, c, inside):
    """Two values of each channel, as rows."""
    return tl.load(first + c, inside, other=0.0)[None, :], tl.load(second + c, inside, other=0.0)[None, :]


@triton.jit
def _tile(start, pixels, channels, c, inside, TALL: tl.constexpr):
    """Where a tile of pixels lies, and which of its elements there are."""
    r = start + tl.arange(0, TALL)
    return r.to(tl.int64)[:, None] * channels + c[None, :], (r < pixels)[:, None] & inside[None, :]


@triton.jit
def _keep(m, squares, mean, scale, running_mean, running_var, momentum, eps, pixels, c, inside):
    """Write mean [1, WIDE] and 1 / deviation for the backward pass, and the running averages, where `inside`."""
    m, variance = tl.sum(m, 0), tl.sum(squares, 0) / pixels
    tl.store(mean + c, m, inside)
    tl.store(scale + c, tl.rsqrt(variance + eps), inside)
    before = tl.load(running_mean + c, inside, other=0.0)
    tl.store(running_mean + c, before + momentum * (m - before), inside)
    before = tl.load(running_var + c, inside, other=0.0)
    tl.store(running_var + c, before + momentum * (variance * pixels / (pixels - 1) - before), inside)


@triton.jit
def _finish(normal, beside, y, w, b, floor, at, there, BESIDE: tl.constexpr):
    result = normal * w + b
    if BESIDE:
        result += tl.load(beside + at, there, other=0.0).to(tl.float32)
    result = tl.where(result < floor, floor, result)  # NaN stays NaN
    tl.store(y + at, result.to(y.dtype.element_ty), there)


@triton.jit
def norm_small(
    x, beside, y, weight, bias, mean, scale, running_mean, running_var, momentum, eps, floor, pixels, channels,
    TALL: tl.constexpr, WIDE: tl.constexpr, BESIDE: tl.constexpr,
):  # fmt: skip
    """Batch norm forward, for pixels that one program holds: all of its channels."""
    c, inside = _channels(channels, WIDE)
    at, there = _tile(0, pixels, channels, c, inside, TALL)
    value = tl.load(x + at, there, other=0.0).to(tl.float32)
    m = tl.sum(value, 0, keep_dims=True) / pixels
    centred = tl.where(there, value - m, 0.0)
    squares = tl.sum(centred * centred, 0, keep_dims=True)
    _keep(m, squares, mean, scale, running_mean, running_var, momentum, eps, pixels, c, inside)
    w, b = _of_each(weight, bias, c, inside)
    _finish(centred * tl.rsqrt(squares / pixels + eps), beside, y, w, b, floor, at, there, BESIDE)


@triton.jit
def _store_sums(one, two, sums, channels, c, inside):
    part = sums + tl.program_id(1) * 2 * channels + c
    tl.store(part, tl.sum(one, 0), inside)
    tl.store(part + channels, tl.sum(two, 0), inside)


@triton.jit
def _load_sums(sums, channels, c, inside, WIDE: tl.constexpr):
    """Both sums over all parts, as rows."""
    one, two = tl.zeros((_AT_ONCE, WIDE), tl.float32), tl.zeros((_AT_ONCE, WIDE), tl.float32)
    for start in range(0, tl.num_programs(1), _AT_ONCE):
        p = start + tl.arange(0, _AT_ONCE)
        at, there = p[:, None] * 2 * channels + c[None, :], (p < tl.num_programs(1))[:, None] & inside[None, :]
        one += tl.load(sums + at, there, other=0.0)
        two += tl.load(sums + at + channels, there, other=0.0)
    return tl.sum(one, 0, keep_dims=True), tl.sum(two, 0, keep_dims=True)


@triton.jit
def _typical(x, pixels, channels, c, inside):
    """What is taken off all values before they are squared: sums of squares lose the digits that they share.

    It is the median of three pixels, since a single one may be far from all others; and not of three corners, as thirds
    of a batch of 96 would be.
    """
    first = tl.arange(0, 1)  # a tensor, so that what may exceed 32 bits is counted in 64
    p = tl.load(x + (first + pixels // 17 * 3).to(tl.int64) * channels + c, inside, other=0.0).to(tl.float32)
    q = tl.load(x + (first + pixels // 19 * 9).to(tl.int64) * channels + c, inside, other=0.0).to(tl.float32)
    s = tl.load(x + (first + pixels // 23 * 17).to(tl.int64) * channels + c, inside, other=0.0).to(tl.float32)
    return tl.maximum(tl.minimum(p, q), tl.minimum(tl.maximum(p, q), s))[None, :]


@triton.jit
def norm_sums(x, sums, pixels, channels, TALL: tl.constexpr, WIDE: tl.constexpr):
    """Sums over this program's pixels, of the values and of their squares, each less the typical value."""
    c, inside = _channels(channels, WIDE)
    typical = _typical(x, pixels, channels, c, inside)
    one, two = tl.zeros((TALL, WIDE), tl.float32), tl.zeros((TALL, WIDE), tl.float32)
    for start in range(tl.program_id(1) * TALL, pixels, tl.num_programs(1) * TALL):
        at, there = _tile(start, pixels, channels, c, inside, TALL)
        value = tl.where(there, tl.load(x + at, there, other=0.0).to(tl.float32) - typical, 0.0)
        one += value
        two += value * value
    _store_sums(one, two, sums, channels, c, inside)


@triton.jit
def norm_large(
    x, beside, y, weight, bias, mean, scale, running_mean, running_var, momentum, eps, floor, sums, pixels, channels,
    TALL: tl.constexpr, WIDE: tl.constexpr, BESIDE: tl.constexpr,
):  # fmt: skip
    """Batch norm forward, from the sums of all parts."""
    c, inside = _channels(channels, WIDE)
    one, two = _load_sums(sums, channels, c, inside, WIDE)
    m = _typical(x, pixels, channels, c, inside) + one / pixels
    squares = tl.maximum(two - one * one / pixels, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if tl.program_id(1) == 0:
        _keep(m, squares, mean, scale, running_mean, running_var, momentum, eps, pixels, c, inside)
    s = tl.rsqrt(squares / pixels + eps)
    w, b = _of_each(weight, bias, c, inside)
    for start in range(tl.program_id(1) * TALL, pixels, tl.num_programs(1) * TALL):
        at, there = _tile(start, pixels, channels, c, inside, TALL)
        normal = (tl.load(x + at, there, other=0.0).to(tl.float32) - m) * s
        _finish(normal, beside, y, w, b, floor, at, there, BESIDE)


@triton.jit
def _through_relu(
    gradient, also, y, normal, w, b, floor, at, there, BESIDE: tl.constexpr, TWICE: tl.constexpr
):  # fmt: skip
    """The gradient of what the ReLU was given, which is y's sign if there was an addition."""
    g = tl.load(gradient + at, there, other=0.0).to(tl.float32)
    if TWICE:
        g += tl.load(also + at, there, other=0.0).to(tl.float32)
    if BESIDE:
        g = tl.where(tl.load(y + at, there, other=0.0) <= floor, 0.0, g)
    else:
        g = tl.where(normal * w + b <= floor, 0.0, g)
    return g


@triton.jit
def norm_small_backward(
    gradient, also, x, y, of_sum, of_x, weight, bias, mean, scale, of_weight, of_bias, floor, pixels, channels,
    TALL: tl.constexpr, WIDE: tl.constexpr, BESIDE: tl.constexpr, TWICE: tl.constexpr,
):  # fmt: skip
    """The gradients of what `norm_small` was given."""
    c, inside = _channels(channels, WIDE)
    at, there = _tile(0, pixels, channels, c, inside, TALL)
    m, s = _of_each(mean, scale, c, inside)
    w, b = _of_each(weight, bias, c, inside)
    normal = (tl.load(x + at, there, other=0.0).to(tl.float32) - m) * s
    g = _through_relu(gradient, also, y, normal, w, b, floor, at, there, BESIDE, TWICE)
    if BESIDE:
        tl.store(of_sum + at, g.to(of_sum.dtype.element_ty), there)
    one, two = tl.sum(g, 0, keep_dims=True), tl.sum(g * normal, 0, keep_dims=True)  # g is 0 where nothing is there
    tl.store(of_bias + c, tl.sum(one, 0), inside)
    tl.store(of_weight + c, tl.sum(two, 0), inside)
    result = (g - one / pixels - normal * two / pixels) * s * w
    tl.store(of_x + at, result.to(of_x.dtype.element_ty), there)


@triton.jit
def norm_sums_backward(
    gradient, also, x, y, of_sum, of_x, weight, bias, mean, scale, of_weight, of_bias, floor, sums, pixels, channels,
    TALL: tl.constexpr, WIDE: tl.constexpr, BESIDE: tl.constexpr, TWICE: tl.constexpr,
):  # fmt: skip
    """Sums over this program's pixels, of the gradient and of its product with the normalised values."""
    c, inside = _channels(channels, WIDE)
    m, s = _of_each(mean, scale, c, inside)
    w, b = _of_each(weight, bias, c, inside)
    one, two = tl.zeros((TALL, WIDE), tl.float32), tl.zeros((TALL, WIDE), tl.float32)
    for start in range(tl.program_id(1) * TALL, pixels, tl.num_programs(1) * TALL):
        at, there = _tile(start, pixels, channels, c, inside, TALL)
        normal = (tl.load(x + at, there, other=0.0).to(tl.float32) - m) * s
        g = _through_relu(gradient, also, y, normal, w, b, floor, at, there, BESIDE, TWICE)
        if BESIDE:
            tl.store(of_sum + at, g.to(of_sum.dtype.element_ty), there)
        one += g
        two += g * normal
    _store_sums(one, two, sums, channels, c, inside)


@triton.jit
def norm_large_backward(
    gradient, also, x, y, of_sum, of_x, weight, bias, mean, scale, of_weight, of_bias, floor, sums, pixels, channels,
    TALL: tl.constexpr, WIDE: tl.constexpr, BESIDE: tl.constexpr, TWICE: tl.constexpr,
):  # fmt: skip
    """The gradients of what `norm_large` was given, from the sums of all parts."""
    c, inside = _channels(channels, WIDE)
    one, two = _load_sums(sums, channels, c, inside, WIDE)
    if tl.program_id(1) == 0:
        tl.store(of_bias + c, tl.sum(one, 0), inside)
        tl.store(of_weight + c, tl.sum(two, 0), inside)
    m, s = _of_each(mean, scale, c, inside)
    w, b = _of_each(weight, bias, c, inside)
    for start in range(tl.program_id(1) * TALL, pixels, tl.num_programs(1) * TALL):
        at, there = _tile(start, pixels, channels, c, inside, TALL)
        normal = (tl.load(x + at, there, other=0.0).to(tl.float32) - m) * s
        if BESIDE:
            g = tl.load(of_sum + at, there, other=0.0).to(tl.float32)
        else:
            g = _through_relu(gradient, also, y, normal, w, b, floor, at, there, BESIDE, TWICE)
        result = (g - one / pixels - normal * two / pixels) * s * w
        tl.store(of_x + at, result.to(of_x.dtype.element_ty), there)


@triton.jit
def max_pool(
    x, y, taps, pixels, channels, height, width, down, across, stride, padding,
    WINDOW: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The largest value in each window, and which tap of the window it was, the first of equal ones."""
    p = tl.program_id(0) * TALL + tl.arange(0, TALL)
    c = (tl.program_id(1) * WIDE + tl.arange(0, WIDE))[None, :]
    image, row, column = p // (down * across), p // across % down, p % across
    inside = (p < pixels)[:, None] & (c < channels)
    best = tl.full((TALL, WIDE), float("-inf"), tl.float32)
    tap = tl.zeros((TALL, WIDE), tl.int8)
    for i in tl.static_range(WINDOW):
        for j in tl.static_range(WINDOW):
            h, w = row * stride - padding + i, column * stride - padding + j
            there = ((h >= 0) & (h < height) & (w >= 0) & (w < width))[:, None] & inside
            at = ((image.to(tl.int64) * height + h) * width + w)[:, None] * channels + c
            value = tl.load(x + at, there, other=float("-inf")).to(tl.float32)
            larger = there & ((value > best) | (value != value))  # NaN, too, as PyTorch does
            best, tap = tl.where(larger, value, best), tl.where(larger, i * WINDOW + j, tap).to(tl.int8)
    at = p.to(tl.int64)[:, None] * channels + c
    tl.store(y + at, best.to(y.dtype.element_ty), inside)
    tl.store(taps + at, tap, inside)


@triton.jit
def max_pool_backward(
    gradient, taps, of_x, pixels, channels, height, width, down, across, stride, padding,
    WINDOW: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Each pixel's gradient: those of the windows in which it was the largest."""
    p = tl.program_id(0) * TALL + tl.arange(0, TALL)
    c = (tl.program_id(1) * WIDE + tl.arange(0, WIDE))[None, :]
    image, h, w = p // (height * width), p // width % height, p % width
    inside = (p < pixels)[:, None] & (c < channels)
    sums = tl.zeros((TALL, WIDE), tl.float32)
    for i in tl.static_range(WINDOW):
        for j in tl.static_range(WINDOW):
            row, column = h + padding - i, w + padding - j
            met = (row >= 0) & (row % stride == 0) & (row // stride < down)
            met = met & (column >= 0) & (column % stride == 0) & (column // stride < across)
            there = met[:, None] & inside
            at = ((image.to(tl.int64) * down + row // stride) * across + column // stride)[:, None] * channels + c
            chosen = there & (tl.load(taps + at, there, other=-1) == i * WINDOW + j)
            sums += tl.load(gradient + at, chosen, other=0.0).to(tl.float32)
    at = p.to(tl.int64)[:, None] * channels + c
    tl.store(of_x + at, sums.to(of_x.dtype.element_ty), inside)


@triton.jit
def adam(
    weight, gradient, mean, square, step, count, rate, eps, new, new_square, log_beta, log_beta_square,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Adam's update of a weight and its moments, element by element."""
    # In float64, since 1 - 0.999 ** step has few digits left in float32.
    t = tl.load(step).to(tl.float64)
    bias, bias_square = (1.0 - tl.exp(t * log_beta)).to(tl.float32), (1.0 - tl.exp(t * log_beta_square)).to(tl.float32)
    for start in range(tl.program_id(0) * BLOCK, count, tl.num_programs(0) * BLOCK):
        at = start + tl.arange(0, BLOCK)
        there = at < count
        g = tl.load(gradient + at, there, other=0.0).to(tl.float32)
        m, v = tl.load(mean + at, there, other=0.0), tl.load(square + at, there, other=0.0)
        m += new * (g - m)
        v += new_square * (g * g - v)
        tl.store(mean + at, m, there)
        tl.store(square + at, v, there)
        change = rate / bias * m / (tl.sqrt(v) / tl.sqrt(bias_square) + eps)
        tl.store(weight + at, tl.load(weight + at, there, other=0.0) - change, there)
