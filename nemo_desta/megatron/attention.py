"""Attention of megatron-core's local layers, where TransformerEngine's is not installed.

Letters: S positions, B rows, A query heads, G key-value heads, H head size.
"""

import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


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
        if attn_mask_type != AttnMaskType.causal or softmax_scale is not None:
            raise ValueError(f"only plain causal attention, found {attn_mask_type} with scale {softmax_scale}")

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
        """query: (S, B, A, H); key, value: (S, B, G, H) -> (S, B, A * H). Rows are right padded: no mask is needed."""
        if any(given is not None for given in (attention_mask, attention_bias, packed_seq_params)):
            raise ValueError("causal attention here takes no mask, bias or packed sequences")
        if query.shape[0] != key.shape[0]:
            raise ValueError(f"{query.shape[0]} queries but {key.shape[0]} keys: only whole sequences, no cache")
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))  # (S, B, A, H) -> (B, A, S, H)
        grouped = query.shape[1] != key.shape[1]
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
        return mixed.permute(2, 0, 1, 3).flatten(2)
