"""Layer mix, LayerNorm and attention pooling of windows as Triton kernels; `reference` is the definition.

Forward reads every frame of every layer once and writes one vector per window and query: no mixed, normalised or
gathered frame ever reaches memory. Backward reads the same frames once more; it needs a few numbers per frame and the
pooled vectors in float32, nothing else (docs/explain/kernel.md derives the formulas). Windows may overlap. No two
programs add to the same memory, so there are no atomics, and two runs give the same bits.

Letters: N encoder layers, B clips, T frames, C encoder width, P windows of the batch, K frames of the longest window,
M queries, G programs of a backward kernel. In the kernels x is a normalised frame, without gain and bias.
"""

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from nemo_desta.ops.kernels.launch import Launch, candidates, choose, in_place, num_programs, on_device
from nemo_desta.ops.kernels.rows import (
    add_product,
    add_scaled,
    centred,
    frame_offset,
    layer_weight_grads,
    load_row,
    mixed_row,
    no_layer_weight_grads,
    norm,
    norm_grad,
    scaled,
    store_layer_weight_grads,
    store_row,
    times,
    total,
    zeros,
)
from nemo_desta.ops.reference import NORM_EPS

# ---- kernels


@triton.jit
def pool_forward_kernel(
    layers, weight_ptr, gain_ptr, bias_ptr, query_ptr, position_ptr, start_ptr, count_ptr,  # fmt: skip
    out_ptr, pooled_ptr, score_ptr, lse_ptr, mean_ptr, rstd_ptr,
    frames_per_clip, clip_stride, scale, eps,
    M: tl.constexpr, K: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """One program per window: frames one after another, softmax kept up to date as they come.

    query_ptr: (M, C) already times the gain. Per frame: t_i = <query_i, x>, the score scale * t_i + position_i; the
    running sums are rescaled when a larger score arrives.
    """
    window = tl.program_id(0).to(tl.int64)
    count = tl.load(count_ptr + window).to(tl.int32)
    offset = frame_offset(start_ptr, window, frames_per_clip, clip_stride, C)
    gain = load_row(gain_ptr, C, WIDTH, LAST)
    peaks = ()
    sums = ()
    pooled = ()
    for _ in tl.static_range(M):
        peaks = peaks + (float("-inf"),)
        sums = sums + (0.0,)
        pooled = pooled + (zeros(gain),)

    for j in range(0, count):
        mix = mixed_row(layers, weight_ptr, offset + j * C, C, WIDTH, LAST)
        mean, rstd, frame = norm(mix, eps, C, WIDTH)
        tl.store(mean_ptr + window * K + j, mean)
        tl.store(rstd_ptr + window * K + j, rstd)
        new_peaks = ()
        new_sums = ()
        new_pooled = ()
        for i in tl.static_range(M):
            t = rstd * total(times(load_row(query_ptr + i * C, C, WIDTH, LAST), frame))
            tl.store(score_ptr + (window * M + i) * K + j, t)
            score = scale * t + tl.load(position_ptr + i * K + j)
            peak = tl.maximum(peaks[i], score)
            kept = tl.exp(peaks[i] - peak)
            share = tl.exp(score - peak)
            new_peaks = new_peaks + (peak,)
            new_sums = new_sums + (kept * sums[i] + share,)
            new_pooled = new_pooled + (add_scaled(share * rstd, frame, scaled(kept, pooled[i])),)
        peaks = new_peaks
        sums = new_sums
        pooled = new_pooled

    bias = load_row(bias_ptr, C, WIDTH, LAST)
    for i in tl.static_range(M):
        row = window * M + i
        mean_frame = scaled(1.0 / sums[i], pooled[i])
        store_row(pooled_ptr + row * C, mean_frame, C, WIDTH, LAST)
        store_row(out_ptr + row * C, add_product(gain, mean_frame, bias), C, WIDTH, LAST)
        tl.store(lse_ptr + row, peaks[i] + tl.log(sums[i]))


@triton.jit
def pool_backward_rows_kernel(
    gain_ptr, grad_ptr, pooled_ptr, delta_ptr, grad_mean_ptr, sums_ptr, num_rows,
    C: tl.constexpr, WIDTH: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """What backward needs of the pooled vectors, over the P * M rows.

    Per row: delta = <gain * grad, pooled> and the mean of gain * grad. Summed, into sums_ptr (G, 2, C): grad * pooled
    and grad, which are the gradients of the gain (its share outside the scores) and of the bias.
    """
    program = tl.program_id(0)
    gain = load_row(gain_ptr, C, WIDTH, LAST)
    gain_grad = zeros(gain)
    bias_grad = zeros(gain)
    for i in range(program, num_rows, tl.num_programs(0)):
        row = tl.cast(i, tl.int64)
        grad = load_row(grad_ptr + row * C, C, WIDTH, LAST)
        product = times(grad, load_row(pooled_ptr + row * C, C, WIDTH, LAST))
        tl.store(delta_ptr + row, total(times(gain, product)))
        tl.store(grad_mean_ptr + row, total(times(gain, grad)) / C)
        gain_grad = add_scaled(1.0, product, gain_grad)
        bias_grad = add_scaled(1.0, grad, bias_grad)
    store_row(sums_ptr + program * 2 * C, gain_grad, C, WIDTH, LAST)
    store_row(sums_ptr + (program * 2 + 1) * C, bias_grad, C, WIDTH, LAST)


@triton.jit
def pool_backward_kernel(
    layers, weight_ptr, gain_ptr, query_ptr, position_ptr, start_ptr, count_ptr, grad_ptr,
    score_ptr, lse_ptr, mean_ptr, rstd_ptr, delta_ptr, grad_mean_ptr,
    weight_grad_ptr, query_grad_ptr, score_grad_ptr,
    num_windows, frames_per_clip, clip_stride, scale,
    M: tl.constexpr, K: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr, LAST: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Every program walks over windows and their frames and keeps its sums in registers until it ends.

    Across threads go one sum per frame and query, <gain * grad_i, x>; the two means that LayerNorm's backward
    subtracts follow from numbers that are there already. query_grad_ptr: (G, M, C) sums of ds_i * x, without gain.
    """
    program = tl.program_id(0)
    weight_grads = no_layer_weight_grads(layers, LANES)
    query_grads = ()
    query_means = ()
    for i in tl.static_range(M):
        query = load_row(query_ptr + i * C, C, WIDTH, LAST)
        query_grads = query_grads + (zeros(query),)
        query_means = query_means + (total(query) / C,)

    for w in range(program, num_windows, tl.num_programs(0)):
        window = tl.cast(w, tl.int64)
        count = tl.load(count_ptr + window).to(tl.int32)
        offset = frame_offset(start_ptr, window, frames_per_clip, clip_stride, C)
        for j in range(0, count):
            mix = mixed_row(layers, weight_ptr, offset + j * C, C, WIDTH, LAST)
            rstd = tl.load(rstd_ptr + window * K + j)
            frame = centred(mix, tl.load(mean_ptr + window * K + j), C, WIDTH)  # x / rstd
            x_grad = zeros(frame)
            mean_grad = 0.0
            mean_grad_x = 0.0
            new_query_grads = ()
            for i in tl.static_range(M):
                row = window * M + i
                gain = load_row(gain_ptr, C, WIDTH, LAST)
                grad = times(gain, load_row(grad_ptr + row * C, C, WIDTH, LAST))
                e = rstd * total(times(grad, frame))
                t = tl.load(score_ptr + row * K + j)
                share = tl.exp(scale * t + tl.load(position_ptr + i * K + j) - tl.load(lse_ptr + row))
                score_grad = share * (e - tl.load(delta_ptr + row))
                tl.store(score_grad_ptr + row * K + j, score_grad)
                t_grad = scale * score_grad
                mean_grad += share * tl.load(grad_mean_ptr + row) + t_grad * query_means[i]
                mean_grad_x += (share * e + t_grad * t) / C
                query = load_row(query_ptr + i * C, C, WIDTH, LAST)
                x_grad = add_scaled(share, grad, add_scaled(t_grad, query, x_grad))
                new_query_grads = new_query_grads + (add_scaled(t_grad * rstd, frame, query_grads[i]),)
            query_grads = new_query_grads
            mix_grad = norm_grad(x_grad, mean_grad, mean_grad_x, frame, rstd)
            weight_grads = layer_weight_grads(weight_grads, layers, offset + j * C, mix_grad, C, WIDTH, LAST, LANES)

    store_layer_weight_grads(weight_grad_ptr + program * len(layers), weight_grads)
    for i in tl.static_range(M):
        store_row(query_grad_ptr + (program * M + i) * C, query_grads[i], C, WIDTH, LAST)


# ---- launchers


def forward_launches(width: int, num_queries: int) -> list[Launch]:
    """What `pool_forward_kernel` may be launched with: it holds M running sums."""
    return candidates(width, num_queries, 80)


def backward_launches(width: int, num_queries: int, num_layers: int) -> list[Launch]:
    """What `pool_backward_kernel` may be launched with.

    It holds M running sums beside a frame and its gradient; every eight layers cost about as much as one more.
    """
    return candidates(width, num_queries + num_layers // 8, 40)


def rows_launches(width: int) -> list[Launch]:
    """What `pool_backward_rows_kernel` may be launched with."""
    return candidates(width, 2, 80)[:1]


def _launch_forward(layers, layer_weights, gain, bias, query, position_bias, starts, counts, outputs) -> None:
    """Arguments as `pool_forward`, parameters in float32; fills ``outputs``."""
    (P, M, C), K = outputs[0].shape, position_bias.shape[1]
    memory = in_place(layers)

    def run(launch: Launch) -> None:
        pool_forward_kernel[(P,)](
            memory.layers, layer_weights, gain, bias, gain * query, position_bias, starts, counts, *outputs,
            memory.frames_per_clip, memory.clip_stride, C**-0.5, NORM_EPS,
            M=M, K=K, **launch.constants(), **launch.options(),
        )  # fmt: skip

    if P:
        run(choose(("forward", len(layers), M, K, C, layers[0].dtype), forward_launches(C, M), run))


def _launch_backward_rows(gain, grad, pooled) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """delta (P, M), mean of gain * grad (P, M), and over rows the sums of grad * pooled (C,) and of grad (C,)."""
    P, M, C = grad.shape
    launch = rows_launches(C)[0]
    programs = num_programs(P * M, launch, grad.device)
    delta, grad_mean = gain.new_empty(P, M), gain.new_empty(P, M)
    sums = gain.new_empty(programs, 2, C)
    pool_backward_rows_kernel[(programs,)](
        gain, grad, pooled, delta, grad_mean, sums, P * M,
        **launch.constants(), **launch.options(),
    )  # fmt: skip
    return delta, grad_mean, *sums.sum(0)


def _launch_backward(
    layers, layer_weights, gain, query, position_bias, starts, counts, saved, grad, delta, grad_mean
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums over windows: of <gradient of the mix, layer> (N,), of ds * x (M, C), of ds (M, K)."""
    (P, M, C), K, N = grad.shape, position_bias.shape[1], len(layers)
    memory = in_place(layers)

    def run(launch: Launch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        programs = num_programs(P, launch, grad.device)
        weight_grad, query_grad = gain.new_empty(programs, N), gain.new_empty(programs, M, C)
        score_grad = gain.new_zeros(P, M, K)  # the kernel writes a window's own frames only
        pool_backward_kernel[(programs,)](
            memory.layers, layer_weights, gain, gain * query, position_bias, starts, counts, grad,
            *saved, delta, grad_mean, weight_grad, query_grad, score_grad,
            P, memory.frames_per_clip, memory.clip_stride, C**-0.5,
            M=M, K=K, **launch.constants(), LANES=launch.lanes, **launch.options(),
        )  # fmt: skip
        return weight_grad.sum(0), query_grad.sum(0), score_grad.sum(0)

    return run(choose(("backward", N, M, K, C, grad.dtype), backward_launches(C, M, N), run))


# ---- operators, their shapes and their gradient


def _forward(
    layers: Sequence[torch.Tensor],
    layer_weights: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    query: torch.Tensor,
    position_bias: torch.Tensor,
    starts: torch.Tensor,
    counts: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pooled windows (P, M, C) in the layers' dtype, then what backward needs, in float32.

    That is: pooled x (P, M, C), <gain * query, x> of every frame (P, M, K), log-sum-exp of a window's scores (P, M),
    mean and 1 / deviation of every frame (P, K); what lies beyond a window's count is not set.
    """
    outputs = _empty_outputs(layers, query, position_bias, starts)
    parameters = (layer_weights, norm_weight, norm_bias, query, position_bias)
    with on_device(starts):
        _launch_forward(layers, *(p.float().contiguous() for p in parameters), starts, counts, outputs)
    return outputs


def _gradients(
    layers: Sequence[torch.Tensor],
    layer_weights: torch.Tensor,
    norm_weight: torch.Tensor,
    query: torch.Tensor,
    position_bias: torch.Tensor,
    starts: torch.Tensor,
    counts: torch.Tensor,
    saved: Sequence[torch.Tensor],
    grad: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of layer weights (N,), gain (C,), bias (C,), query (M, C) and position bias (M, K), in float32."""
    if not len(starts):
        return tuple(torch.zeros_like(e) for e in _empty_grads(layer_weights, norm_weight, query, position_bias))
    weights, gain, query, position_bias = (
        p.float().contiguous() for p in (layer_weights, norm_weight, query, position_bias)
    )
    pooled, *of_frames = saved
    grad = grad.contiguous()
    with on_device(starts):
        delta, grad_mean, gain_grad, bias_grad = _launch_backward_rows(gain, grad, pooled)
        weight_grad, moved, position_grad = _launch_backward(
            layers, weights, gain, query, position_bias, starts, counts, of_frames, grad, delta, grad_mean
        )
    gain_grad = gain_grad + (query * moved).sum(0)  # the gain acts on the scores, too
    return weight_grad, gain_grad, bias_grad, gain * moved, position_grad


pool_forward = torch.library.custom_op("nemo_desta::mix_pool_attention", _forward, mutates_args=())
pool_backward = torch.library.custom_op("nemo_desta::mix_pool_attention_backward", _gradients, mutates_args=())


@pool_forward.register_fake
def _(layers, layer_weights, norm_weight, norm_bias, query, position_bias, starts, counts):
    return _empty_outputs(layers, query, position_bias, starts)


@pool_backward.register_fake
def _(layers, layer_weights, norm_weight, query, position_bias, starts, counts, saved, grad):
    return _empty_grads(layer_weights, norm_weight, query, position_bias)


def _empty_outputs(layers, query, position_bias, starts) -> tuple[torch.Tensor, ...]:
    P, (M, K), C = starts.shape[0], position_bias.shape, query.shape[1]
    new = functools.partial(torch.empty, dtype=torch.float32, device=starts.device)
    out = torch.empty(P, M, C, dtype=layers[0].dtype, device=starts.device)
    return out, new(P, M, C), new(P, M, K), new(P, M), new(P, K), new(P, K)


def _empty_grads(layer_weights, norm_weight, query, position_bias) -> tuple[torch.Tensor, ...]:
    shaped = (layer_weights, norm_weight, norm_weight, query, position_bias)
    return tuple(torch.empty(p.shape, dtype=torch.float32, device=p.device) for p in shaped)


def _save(ctx, inputs, output) -> None:
    layers, layer_weights, norm_weight, norm_bias, query, position_bias, starts, counts = inputs
    ctx.num_layers = len(layers)
    ctx.dtypes = [p.dtype for p in (layer_weights, norm_weight, norm_bias, query, position_bias)]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # or autograd would fill zeros as large as what was saved
    ctx.save_for_backward(*layers, layer_weights, norm_weight, query, position_bias, starts, counts, *output[1:])


def _grads(ctx, grad, gradients) -> tuple[torch.Tensor | None, ...]:
    """Of layer weights, gain, bias, query and position bias, in their dtypes."""
    if grad is None:
        return (None,) * 5
    saved = ctx.saved_tensors  # once: checkpointing computes anew what a second look would find freed
    layers, inputs, of_frames = saved[: ctx.num_layers], saved[ctx.num_layers : -5], saved[-5:]
    grads = gradients(layers, *inputs, of_frames, grad)
    return tuple(g.to(dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True))


def _backward(ctx, grad, *_):
    return [None] * ctx.num_layers, *_grads(ctx, grad, pool_backward), None, None


pool_forward.register_autograd(_backward, setup_context=_save)


class PoolFunction(torch.autograd.Function):
    """`pool_forward` for eager PyTorch: the operator's way through the dispatcher costs more than the kernels."""

    @staticmethod
    def forward(layer_weights, norm_weight, norm_bias, query, position_bias, starts, counts, *layers):
        """Arguments of `pool_forward`, the layers last."""
        return _forward(layers, layer_weights, norm_weight, norm_bias, query, position_bias, starts, counts)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _save(ctx, (inputs[7:], *inputs[:7]), output)

    @staticmethod
    def backward(ctx, grad, *_):
        return *_grads(ctx, grad, _gradients), None, None, *[None] * ctx.num_layers
