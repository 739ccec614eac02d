"""Rows of C channels inside a Triton kernel: a tuple of float32 pieces, so that a width like 1280 wastes no lanes.

Triton knows vectors of a power of two only; 1280 padded to 2048 would spend 3 of 8 instructions on nothing. Here a row
is as many whole pieces of WIDTH channels as fit, then one of LAST (0: none) for the rest, zero beyond channel C.
`Launch` picks both so that every lane loads 16 bytes of half precision at once.
"""

import triton
import triton.language as tl

# Widths are compile-time constants everywhere: C channels, WIDTH and LAST of the pieces, LANES threads per program.


@triton.jit
def load_row(ptr, C: tl.constexpr, WIDTH: tl.constexpr, LAST: tl.constexpr):
    """The C channels at ``ptr``."""
    row = ()
    for i in tl.static_range(C // WIDTH):
        row = row + (tl.load(ptr + i * WIDTH + tl.arange(0, WIDTH)).to(tl.float32),)
    if LAST > 0:
        channel = C // WIDTH * WIDTH + tl.arange(0, LAST)
        row = row + (tl.load(ptr + channel, mask=channel < C, other=0.0).to(tl.float32),)
    return row


@triton.jit
def store_row(ptr, row, C: tl.constexpr, WIDTH: tl.constexpr, LAST: tl.constexpr):
    """Write a row to ``ptr`` in that pointer's own type."""
    for i in tl.static_range(C // WIDTH):
        tl.store(ptr + i * WIDTH + tl.arange(0, WIDTH), row[i].to(ptr.dtype.element_ty))
    if LAST > 0:
        channel = C // WIDTH * WIDTH + tl.arange(0, LAST)
        tl.store(ptr + channel, row[C // WIDTH].to(ptr.dtype.element_ty), mask=channel < C)


@triton.jit
def zeros(like):
    """A row of zeros shaped as ``like``."""
    row = ()
    for i in tl.static_range(len(like)):
        row = row + (tl.zeros_like(like[i]),)
    return row


@triton.jit
def scaled(scale, x):
    """scale * x for one number ``scale``."""
    row = ()
    for i in tl.static_range(len(x)):
        row = row + (scale * x[i],)
    return row


@triton.jit
def times(x, y):
    """x * y, channel by channel."""
    row = ()
    for i in tl.static_range(len(x)):
        row = row + (x[i] * y[i],)
    return row


@triton.jit
def add_product(x, y, z):
    """x * y + z, channel by channel."""
    row = ()
    for i in tl.static_range(len(x)):
        row = row + (x[i] * y[i] + z[i],)
    return row


@triton.jit
def add_scaled(scale, x, y):
    """scale * x + y for one number ``scale``."""
    row = ()
    for i in tl.static_range(len(x)):
        row = row + (scale * x[i] + y[i],)
    return row


@triton.jit
def total(x):
    """The sum over all channels; pieces of one width are added first and share one reduction across threads."""
    equal = x[0]
    for i in tl.static_range(1, len(x)):
        if x[i].shape[0] == x[0].shape[0]:
            equal += x[i]
    result = tl.sum(equal, 0)
    if x[len(x) - 1].shape[0] != x[0].shape[0]:
        result += tl.sum(x[len(x) - 1], 0)
    return result


@triton.jit
def lane_totals(x, LANES: tl.constexpr):
    """(LANES,): every thread's own share of the sum, for running totals that cross threads only once, at the end."""
    result = tl.zeros((LANES,), tl.float32)
    for i in tl.static_range(len(x)):
        result += tl.sum(tl.reshape(x[i], (LANES, x[i].shape[0] // LANES)), 1)
    return result


@triton.jit
def centred(x, mean, C: tl.constexpr, WIDTH: tl.constexpr):
    """x - mean, still zero beyond channel C."""
    row = ()
    for i in tl.static_range(len(x)):
        piece = x[i] - mean
        if i * WIDTH + x[i].shape[0] > C:
            piece = tl.where(i * WIDTH + tl.arange(0, x[i].shape[0]) < C, piece, 0.0)
        row = row + (piece,)
    return row


@triton.jit
def norm(mix, eps, C: tl.constexpr, WIDTH: tl.constexpr):
    """LayerNorm's mean, 1 / deviation, and mix - mean: x is the last two multiplied."""
    mean = total(mix) / C
    frame = centred(mix, mean, C, WIDTH)
    return mean, tl.rsqrt(total(times(frame, frame)) / C + eps), frame


@triton.jit
def norm_grad(grad, mean_grad, mean_grad_x, frame, rstd):
    """Gradient of the mix from that of x, the means of ``grad`` and of grad * x, and x as frame * rstd."""
    row = ()
    for i in tl.static_range(len(frame)):
        row = row + (rstd * (grad[i] - mean_grad - (mean_grad_x * rstd) * frame[i]),)
    return row


@triton.jit
def frame_offset(start_ptr, window, frames_per_clip, clip_stride, C: tl.constexpr):
    """Where a window's first frame lies in a layer (B, T, C) whose clips are ``clip_stride`` elements apart."""
    frame = tl.load(start_ptr + window).to(tl.int32)  # B * T fits; a 64-bit division would be a function call
    clip = frame // frames_per_clip
    return clip.to(tl.int64) * clip_stride + (frame - clip * frames_per_clip) * C


@triton.jit
def mixed_row(layers, weight_ptr, offset, C: tl.constexpr, WIDTH: tl.constexpr, LAST: tl.constexpr):
    """The sum over layers of weight * frame, for the frame at ``offset`` of each of them."""
    first = load_row(layers[0] + offset, C, WIDTH, LAST)
    mix = add_scaled(tl.load(weight_ptr), first, zeros(first))
    for n in tl.static_range(1, len(layers)):
        mix = add_scaled(tl.load(weight_ptr + n), load_row(layers[n] + offset, C, WIDTH, LAST), mix)
    return mix


@triton.jit
def no_layer_weight_grads(layers, LANES: tl.constexpr):
    """Where the running gradients of the layer weights begin: (LANES,) zeros per layer."""
    grads = ()
    for _ in tl.static_range(len(layers)):
        grads = grads + (tl.zeros((LANES,), tl.float32),)
    return grads


@triton.jit
def layer_weight_grads(
    grads, layers, offset, mix_grad, C: tl.constexpr, WIDTH: tl.constexpr, LAST: tl.constexpr, LANES: tl.constexpr
):
    """Running gradients of the layer weights, one (LANES,) per layer, plus <mix_grad, frame of the layer>.

    The frame is loaded a second time (it is still in L1): holding N of them would fill the registers.
    """
    result = ()
    for n in tl.static_range(len(layers)):
        product = times(load_row(layers[n] + offset, C, WIDTH, LAST), mix_grad)
        result = result + (grads[n] + lane_totals(product, LANES),)
    return result


@triton.jit
def store_layer_weight_grads(ptr, grads):
    """The running gradients, summed over threads, as len(grads) numbers at ``ptr``."""
    for n in tl.static_range(len(grads)):
        tl.store(ptr + n, tl.sum(grads[n], 0))
