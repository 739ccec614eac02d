"""Attention of megatron-core's local layers, where TransformerEngine's is not installed.

Under context parallelism keys and values are gathered; queries stay where they are.
Letters: S positions, K positions of the keys, B rows, A query heads, G key-value heads, H head size.
"""

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import is_layer_window_attention
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from nemo_desta.megatron.context import all_positions, own_chunks


class CausalAttention(MegatronModule):
    """Causal attention by torch's fused kernel; replaces megatron-core's, which stores the (S, S) scores."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        cp_comm_type: str | None = None,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ):
        super().__init__(config=config)
        if attn_mask_type != AttnMaskType.causal:
            raise ValueError(f"only causal attention, found {attn_mask_type}")
        self.scale = softmax_scale
        self.window = window_of(config, layer_number)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """query: (S, B, A, H); key, value: (S, B, G, H) -> (S, B, A * H). Rows are right padded: no mask is needed.

        Under context parallelism S are this rank's positions; it attends to the keys of all ranks before each of them.
        """
        if any(given is not None for given in (attention_mask, attention_bias, packed_seq_params)):
            raise ValueError("causal attention here takes no mask, bias or packed sequences")
        if query.shape[0] != key.shape[0]:
            raise ValueError(f"{query.shape[0]} queries but {key.shape[0]} keys: only whole sequences, no cache")
        if self.config.context_parallel_size == 1:
            return _attend(query, key, value, scale=self.scale, window=self.window)
        key, value = all_positions(torch.stack([key, value], dim=1)).unbind(1)
        half = query.shape[0] // 2
        ends = [half * (number + 1) for number in own_chunks()]
        return torch.cat(
            [
                _attend(part, key[:end], value[:end], scale=self.scale)
                for part, end in zip(query.split(half), ends, strict=True)
            ]
        )


def window_of(config: TransformerConfig, layer_number: int) -> int | None:
    """Positions that a position of this layer attends to, itself included; None: all before it."""
    if not is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer_number):
        return None
    return config.window_size[0] + 1


def _attend(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None, window: int | None = None
) -> Tensor:
    """query: (S, B, A, H), the last S of the keys' positions; key, value: (K, B, G, H) -> (S, B, A * H)."""
    query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))  # (S, B, A, H) -> (B, A, S, H)
    S, K, grouped = query.shape[2], key.shape[2], query.shape[1] != key.shape[1]
    # flash attention knows the mask of fewer queries than keys; other kernels (a CPU's) get it as (S, K) booleans
    mask = {"is_causal": True} if S == K else {"attn_mask": causal_lower_right(S, K)}
    if window is not None and window < K:
        seen = torch.ones(S, K, dtype=torch.bool, device=query.device).tril(K - S)
        mask = {"attn_mask": seen.triu(K - S - window + 1)}
    mixed = F.scaled_dot_product_attention(query, key, value, enable_gqa=grouped, scale=scale, **mask)
    return mixed.permute(2, 0, 1, 3).flatten(2)
