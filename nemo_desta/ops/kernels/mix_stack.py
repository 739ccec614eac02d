"""Layer mix and LayerNorm of windows whose frames stay side by side, as Triton kernels; `reference` is the definition.

The sibling of `mix_pool` without attention: a window's K frames are written one after another, zeros beyond its count.
Letters: N encoder layers, B clips, T frames, C encoder width, P windows of the batch, K frames of the longest window,
G programs of the backward kernel. In the kernels x is a normalised frame, without gain and bias.
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
def stack_forward_kernel(
    layers, weight_ptr, gain_ptr, bias_ptr, start_ptr, count_ptr, out_ptr, mean_ptr, rstd_ptr,
    frames_per_clip, clip_stride, eps,
    K: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """One program per window and slot."""
    window = tl.program_id(0).to(tl.int64)
    slot = tl.program_id(1)
    gain = load_row(gain_ptr, C, WIDTH, LAST)
    out = zeros(gain)
    if slot < tl.load(count_ptr + window):
        offset = frame_offset(start_ptr, window, frames_per_clip, clip_stride, C) + slot * C
        mix = mixed_row(layers, weight_ptr, offset, C, WIDTH, LAST)
        mean, rstd, frame = norm(mix, eps, C, WIDTH)
        tl.store(mean_ptr + window * K + slot, mean)
        tl.store(rstd_ptr + window * K + slot, rstd)
        out = add_product(gain, scaled(rstd, frame), load_row(bias_ptr, C, WIDTH, LAST))
    store_row(out_ptr + (window * K + slot) * C, out, C, WIDTH, LAST)


@triton.jit
def stack_backward_kernel(
    layers, weight_ptr, gain_ptr, start_ptr, count_ptr, grad_ptr, mean_ptr, rstd_ptr,
    weight_grad_ptr, gain_grad_ptr, bias_grad_ptr,
    num_windows, frames_per_clip, clip_stride,
    K: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr, LAST: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Every program walks over windows and their frames and keeps its sums in registers until it ends."""
    program = tl.program_id(0)
    weight_grads = no_layer_weight_grads(layers, LANES)
    gain_grad = zeros(load_row(gain_ptr, C, WIDTH, LAST))
    bias_grad = gain_grad
    for w in range(program, num_windows, tl.num_programs(0)):
        window = tl.cast(w, tl.int64)
        count = tl.load(count_ptr + window).to(tl.int32)
        offset = frame_offset(start_ptr, window, frames_per_clip, clip_stride, C)
        for j in range(0, count):
            mix = mixed_row(layers, weight_ptr, offset + j * C, C, WIDTH, LAST)
            rstd = tl.load(rstd_ptr + window * K + j)
            frame = centred(mix, tl.load(mean_ptr + window * K + j), C, WIDTH)  # x / rstd
            grad = load_row(grad_ptr + (window * K + j) * C, C, WIDTH, LAST)
            gain_grad = add_scaled(rstd, times(grad, frame), gain_grad)
            bias_grad = add_scaled(1.0, grad, bias_grad)
            x_grad = times(load_row(gain_ptr, C, WIDTH, LAST), grad)
            mean_grad_x = rstd * total(times(x_grad, frame)) / C
            mix_grad = norm_grad(x_grad, total(x_grad) / C, mean_grad_x, frame, rstd)
            weight_grads = layer_weight_grads(weight_grads, layers, offset + j * C, mix_grad, C, WIDTH, LAST, LANES)
    store_layer_weight_grads(weight_grad_ptr + program * len(layers), weight_grads)
    store_row(gain_grad_ptr + program * C, gain_grad, C, WIDTH, LAST)
    store_row(bias_grad_ptr + program * C, bias_grad, C, WIDTH, LAST)


# ---- launchers


def forward_launches(width: int) -> list[Launch]:
    """What `stack_forward_kernel` may be launched with."""
    return candidates(width, 1, 80)


def backward_launches(width: int) -> list[Launch]:
    """What `stack_backward_kernel` may be launched with: it holds two running sums beside a frame and its gradient."""
    return candidates(width, 2, 40)


def _launch_forward(layers, layer_weights, gain, bias, starts, counts, outputs) -> None:
    P, K, C = outputs[0].shape
    memory = in_place(layers)

    def run(launch: Launch) -> None:
        stack_forward_kernel[(P, K)](
            memory.layers, layer_weights, gain, bias, starts, counts, *outputs,
            memory.frames_per_clip, memory.clip_stride, NORM_EPS,
            K=K, **launch.constants(), **launch.options(),
        )  # fmt: skip

    if P:
        run(choose(("stack forward", len(layers), K, C, layers[0].dtype), forward_launches(C), run))


def _launch_backward(
    layers, layer_weights, gain, starts, counts, mean, rstd, grad
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    P, K, C = grad.shape
    N = len(layers)
    memory = in_place(layers)

    def run(launch: Launch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        programs = num_programs(P, launch, grad.device)
        sums = gain.new_empty(programs, N), gain.new_empty(programs, C), gain.new_empty(programs, C)
        stack_backward_kernel[(programs,)](
            memory.layers, layer_weights, gain, starts, counts, grad, mean, rstd, *sums,
            P, memory.frames_per_clip, memory.clip_stride,
            K=K, **launch.constants(), LANES=launch.lanes, **launch.options(),
        )  # fmt: skip
        return tuple(total.sum(0) for total in sums)

    return run(choose(("stack backward", N, K, C, grad.dtype), backward_launches(C), run))


# ---- operators, their shapes and their gradient


def _forward(
    layers: Sequence[torch.Tensor],
    layer_weights: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    starts: torch.Tensor,
    counts: torch.Tensor,
    max_frames: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Frames side by side (P, K, C) in the layers' dtype, mean and 1 / deviation of every frame (P, K) in float32."""
    outputs = _empty_outputs(layers, starts, max_frames)
    parameters = (layer_weights, norm_weight, norm_bias)
    with on_device(starts):
        _launch_forward(layers, *(p.float().contiguous() for p in parameters), starts, counts, outputs)
    return outputs


def _gradients(
    layers: Sequence[torch.Tensor],
    layer_weights: torch.Tensor,
    norm_weight: torch.Tensor,
    starts: torch.Tensor,
    counts: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    grad: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of layer weights (N,), gain (C,) and bias (C,), in float32."""
    if not len(starts):
        return tuple(torch.zeros_like(empty) for empty in _empty_grads(layer_weights, norm_weight))
    weights, gain = layer_weights.float().contiguous(), norm_weight.float().contiguous()
    with on_device(starts):
        return _launch_backward(layers, weights, gain, starts, counts, mean, rstd, grad.contiguous())


stack_forward = torch.library.custom_op("nemo_desta::mix_stack", _forward, mutates_args=())
stack_backward = torch.library.custom_op("nemo_desta::mix_stack_backward", _gradients, mutates_args=())


@stack_forward.register_fake
def _(layers, layer_weights, norm_weight, norm_bias, starts, counts, max_frames):
    return _empty_outputs(layers, starts, max_frames)


@stack_backward.register_fake
def _(layers, layer_weights, norm_weight, starts, counts, mean, rstd, grad):
    return _empty_grads(layer_weights, norm_weight)


def _empty_outputs(layers, starts, max_frames) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    P, C = starts.shape[0], layers[0].shape[2]
    new = functools.partial(torch.empty, device=starts.device)
    return new(P, max_frames, C, dtype=layers[0].dtype), new(P, max_frames), new(P, max_frames)


def _empty_grads(layer_weights, norm_weight) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shaped = (layer_weights, norm_weight, norm_weight)
    return tuple(torch.empty(p.shape, dtype=torch.float32, device=p.device) for p in shaped)


def _save(ctx, inputs, output) -> None:
    layers, layer_weights, norm_weight, norm_bias, starts, counts, _ = inputs
    ctx.num_layers = len(layers)
    ctx.dtypes = [p.dtype for p in (layer_weights, norm_weight, norm_bias)]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*layers, layer_weights, norm_weight, starts, counts, *output[1:])


def _grads(ctx, grad, gradients) -> tuple[torch.Tensor | None, ...]:
    """Of layer weights, gain and bias, in their dtypes."""
    if grad is None:
        return (None,) * 3
    saved = ctx.saved_tensors  # once: checkpointing computes anew what a second look would find freed
    grads = gradients(saved[: ctx.num_layers], *saved[ctx.num_layers :], grad)
    return tuple(g.to(dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True))


def _backward(ctx, grad, *_):
    return [None] * ctx.num_layers, *_grads(ctx, grad, stack_backward), None, None, None


stack_forward.register_autograd(_backward, setup_context=_save)


class StackFunction(torch.autograd.Function):
    """`stack_forward` for eager PyTorch, past the dispatcher; see `mix_pool.PoolFunction`."""

    @staticmethod
    def forward(layer_weights, norm_weight, norm_bias, starts, counts, max_frames, *layers):
        """Arguments of `stack_forward`, the layers last."""
        return _forward(layers, layer_weights, norm_weight, norm_bias, starts, counts, max_frames)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _save(ctx, (inputs[6:], *inputs[:6]), output)

    @staticmethod
    def backward(ctx, grad, *_):
        return *_grads(ctx, grad, _gradients), None, None, None, *[None] * ctx.num_layers
