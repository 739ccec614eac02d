"""Layer mix, LayerNorm and window pooling in plain PyTorch: the definition that any kernel is tested against.

Letters: N encoder layers, B clips, T frames, C encoder width, P windows of the batch, K frames of the longest window,
M queries.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F

from nemo_desta.ops.windows import window_index
from nemo_desta.types import WindowTable

NORM_EPS = 1e-5


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
) -> torch.Tensor:
    """Mix an encoder's layers, normalise each frame, and reduce each window of frames.

    A frame is ``y_j = norm_weight * x_j + norm_bias`` with ``x_j`` the normalised ``sum_n layer_weights[n] *
    layers[n][j]``. "attention": query i sees the window's frames with the weights ``softmax_j(C**-0.5 *
    <norm_weight * query_i, x_j> + position_bias_ij)``; the norm's bias would add the same to every score and is left
    out. "stack": the window's frames side by side.

    Frames that no window reads, and slots beyond a window's count, are never touched, whatever they hold. Sums are in
    float32 (float64 for float64 layers).

    Args:
        layers: N tensors (B, T, C).
        layer_weights: (N,), already a softmax.
        norm_weight, norm_bias: (C,).
        query: (M, C); not read by "stack".
        position_bias: (M, K), by position inside the window; "stack" reads only its K, or takes the longest window.
        windows: which frames each window reads.

    Returns:
        "attention": (P, M, C); "stack": (P, K, C), zero beyond the window's count. In the layers' dtype.

    Raises:
        ValueError: unknown mode, layers and weights that differ in number, or (checked on a CPU only, since a GPU
            would have to wait) a window longer than K.
    """
    if mode not in ("attention", "stack"):
        raise ValueError(f"mode is {mode!r}; mix_pool knows 'attention' and 'stack'")
    if len(layers) != len(layer_weights):
        raise ValueError(f"{len(layers)} layers but {len(layer_weights)} layer weights; each layer needs one weight")
    width = position_bias.shape[1] if position_bias is not None else int(windows.counts.max())
    if not windows.counts.is_cuda and int(windows.counts.max()) > width:
        raise ValueError(
            f"a window holds {int(windows.counts.max())} frames but position_bias is for {width}; "
            "make it as wide as ops.max_window_frames says"
        )
    dtype = layers[0].dtype
    compute = torch.promote_types(dtype, torch.float32)
    index, valid = window_index(windows, width)

    with torch.autocast(layers[0].device.type, enabled=False):  # a mixed-precision caller must not thin the sums
        mixed = 0
        # one by one: a stack would copy all layers first
        for layer, weight in zip(layers, layer_weights.to(compute), strict=True):
            mixed = mixed + weight * layer.flatten(0, 1)[index].to(compute)  # (B, T, C) -> (P, K, C)
        frames = F.layer_norm(mixed, mixed.shape[-1:], eps=NORM_EPS)
        scale, shift = norm_weight.to(compute), norm_bias.to(compute)

        if mode == "stack":
            return ((scale * frames + shift) * valid[..., None]).to(dtype)
        scores = torch.einsum("mc,pkc->pmk", scale * query.to(compute), frames) * frames.shape[-1] ** -0.5
        scores = (scores + position_bias.to(compute)).masked_fill(~valid[:, None], float("-inf"))
        pooled = scores.softmax(-1) @ frames  # (P, M, K) @ (P, K, C) -> (P, M, C)
        return (scale * pooled + shift).to(dtype)
