"""Numerics of the projector; this module chooses between the Triton kernel and plain PyTorch.

Letters: N encoder layers, B clips, T frames, C encoder width, P windows of the batch, K frames of the longest window,
M queries.
"""

import functools
import importlib.util
import logging
import os
from collections.abc import Sequence
from typing import Literal

import torch

from nemo_desta.ops import reference
from nemo_desta.ops.windows import max_window_frames, num_windows, window_table
from nemo_desta.types import WindowTable

__all__ = ["KERNELS", "choose_kernel", "max_window_frames", "mix_pool", "num_windows", "window_table"]

logger = logging.getLogger(__name__)

KERNELS = ("auto", "triton", "torch")
#: Overrules every ``kernel`` argument and config: auto, triton or torch.
KERNEL_VARIABLE = "NEMO_DESTA_KERNEL"
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def mix_pool(
    layers: Sequence[torch.Tensor],
    layer_weights: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    query: torch.Tensor | None,
    position_bias: torch.Tensor | None,
    windows: WindowTable,
    *,
    mode: Literal["attention", "stack"],
    kernel: Literal["auto", "triton", "torch"] = "auto",
) -> torch.Tensor:
    """Mix an encoder's layers, normalise each frame, and reduce each window of frames.

    A frame is ``y_j = norm_weight * x_j + norm_bias`` with ``x_j`` the normalised ``sum_n layer_weights[n] *
    layers[n][j]``. "attention": query i sees the window's frames with the weights ``softmax_j(C**-0.5 *
    <norm_weight * query_i, x_j> + position_bias_ij)``; the norm's bias would add the same to every score and is left
    out. Zero query and position bias give the exact mean. "stack": the window's frames side by side.

    Frames that no window reads, and slots beyond a window's count, are never touched, whatever they hold. Sums are in
    float32 (float64 for float64 layers), also under autocast.

    Args:
        layers: N tensors (B, T, C), frozen with ``kernel="triton"``: their gradient is not computed there.
        layer_weights: (N,), already a softmax.
        norm_weight, norm_bias: (C,).
        query: (M, C); not read by "stack".
        position_bias: (M, K), by position inside the window; "stack" reads only its K, or takes the longest window.
        windows: which frames each window reads.
        kernel: "triton", "torch" (`reference`), or "auto": see `choose_kernel`.

    Returns:
        "attention": (P, M, C); "stack": (P, K, C), zero beyond the window's count. In the layers' dtype.

    Raises:
        ValueError: unknown mode or kernel, layers and weights that differ in number, shapes that do not fit, or
            (checked on a CPU only, since a GPU would have to wait) a window longer than K.
        RuntimeError: ``kernel="triton"`` where it cannot run.
    """
    reference.check(layers, layer_weights, query, position_bias, windows, mode=mode)
    if choose_kernel(kernel, layers) == "torch":
        return reference.mix_pool(
            layers, layer_weights, norm_weight, norm_bias, query, position_bias, windows, mode=mode
        )
    table = windows.starts.contiguous(), windows.counts.contiguous()
    # The operators are for compilers, which trace them with tensors that hold no numbers.
    traced = torch.compiler.is_compiling() or type(layers[0]) is not torch.Tensor
    if mode == "stack":
        from nemo_desta.ops.kernels.mix_stack import StackFunction, stack_forward

        inputs = (layer_weights, norm_weight, norm_bias, *table, reference.window_width(position_bias, windows))
        return (stack_forward(layers, *inputs) if traced else StackFunction.apply(*inputs, *layers))[0]
    from nemo_desta.ops.kernels.mix_pool import PoolFunction, pool_forward

    inputs = (layer_weights, norm_weight, norm_bias, query, position_bias, *table)
    return (pool_forward(layers, *inputs) if traced else PoolFunction.apply(*inputs, *layers))[0]


def choose_kernel(kernel: str, layers: Sequence[torch.Tensor]) -> Literal["triton", "torch"]:
    """The implementation that `mix_pool` uses for these layers.

    "auto" is Triton on a GPU, for frozen layers of float32, bfloat16 or float16, and PyTorch everywhere else. The
    environment variable ``NEMO_DESTA_KERNEL`` overrules ``kernel``. Each choice is logged once.

    Raises:
        ValueError: unknown kernel.
        RuntimeError: Triton is requested and cannot run: no triton package, another dtype, layers that are trained, or
            a CPU without ``TRITON_INTERPRET=1``.
    """
    asked = os.environ.get(KERNEL_VARIABLE) or kernel
    if asked not in KERNELS:
        where = f"{KERNEL_VARIABLE}={asked}" if KERNEL_VARIABLE in os.environ else f"kernel is {asked!r}"
        raise ValueError(f"{where}; mix_pool knows {', '.join(KERNELS)}")
    if asked == "torch":
        reason, chosen = "requested", "torch"
    else:
        reason = _why_not_triton(layers)
        if asked == "triton" and reason:
            raise RuntimeError(f"mix_pool with kernel=triton cannot run: {reason}. kernel=auto uses PyTorch then")
        chosen = "torch" if reason else "triton"
    if not torch.compiler.is_compiling():
        _log_once(chosen, reason or f"layers on {layers[0].device.type}")
    return chosen


def _why_not_triton(layers: Sequence[torch.Tensor]) -> str:
    """Empty if the kernels can run."""
    device, dtype = layers[0].device.type, layers[0].dtype
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the layers are on {device} (TRITON_INTERPRET=1 interprets kernels there, slowly, for tests)"
    if dtype not in KERNEL_DTYPES:
        return f"the layers are {dtype}; it computes in float32"
    if torch.is_grad_enabled() and any(layer.requires_grad for layer in layers):
        return "the encoder's layers are trained; the kernel gives frozen layers no gradient"
    if not torch.compiler.is_compiling() and not _triton_installed():
        return "the package triton is not installed: pip install triton"
    return ""


@functools.cache
def _triton_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _log_once(chosen: str, reason: str) -> None:
    logger.info("mix_pool runs on %s (%s)", {"triton": "the Triton kernel", "torch": "PyTorch"}[chosen], reason)
