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
    """See `nemo_desta.ops.mix_pool`; gradients of everything, the layers included, are autograd's."""
    dtype = layers[0].dtype
    compute = torch.promote_types(dtype, torch.float32)
    index, valid = window_index(windows, window_width(position_bias, windows))

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


def window_width(position_bias: torch.Tensor | None, windows: WindowTable) -> int:
    """K: what the position bias is for, or the longest window where there is none."""
    return position_bias.shape[1] if position_bias is not None else int(windows.counts.max())


def check(
    layers: Sequence[torch.Tensor],
    layer_weights: torch.Tensor,
    query: torch.Tensor | None,
    position_bias: torch.Tensor | None,
    windows: WindowTable,
    *,
    mode: str,
) -> None:
    """Raise ValueError for what no implementation can compute; see `nemo_desta.ops.mix_pool`."""
    if mode not in ("attention", "stack"):
        raise ValueError(f"mode is {mode!r}; mix_pool knows 'attention' and 'stack'")
    if len(layers) != len(layer_weights):
        raise ValueError(f"{len(layers)} layers but {len(layer_weights)} layer weights; each layer needs one weight")
    if mode == "attention" and (query is None or position_bias is None or len(query) != len(position_bias)):
        found = [None if p is None else tuple(p.shape) for p in (query, position_bias)]
        raise ValueError(f"attention needs a query (M, C) and a position_bias (M, K), found {found[0]} and {found[1]}")
    if position_bias is None or windows.counts.is_cuda or torch.compiler.is_compiling() or not len(windows.counts):
        return
    longest, width = int(windows.counts.max()), position_bias.shape[1]
    if longest > width:
        raise ValueError(
            f"a window holds {longest} frames but position_bias is for {width}; "
            "make it as wide as ops.max_window_frames says"
        )
