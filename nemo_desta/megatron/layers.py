"""The layers of a pipeline stage: TransformerEngine's where it is installed, otherwise megatron-core's local ones.

The local layers have the norm of this file and the attention of attention.py. Both kinds have this file's router, and
its sum where an LLM has a norm after attention and MLP.
Letters: S positions, B rows, H head size, D LLM width, E experts.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from nemo_desta.megatron.attention import CausalAttention, window_of
from nemo_desta.megatron.mcore_compat import submodules_of
from nemo_desta.megatron.mcore_config import has_transformer_engine


def block_spec(config: TransformerConfig, num_layers: int) -> TransformerBlockSubmodules:
    """The layers of one pipeline stage and the final norm."""
    if has_transformer_engine():
        from megatron.core.extensions.transformer_engine import TENorm

        layer = get_gpt_layer_with_transformer_engine_spec(
            num_experts=config.num_moe_experts,
            moe_grouped_gemm=config.moe_grouped_gemm,
            qk_layernorm=config.qk_layernorm,
        )
        norm = TENorm
    else:
        layer, norm = _local_layer(config), RMSNorm
    if config.num_moe_experts:
        submodules_of(layer.submodules.mlp).router = Router
    if config.window_size is not None:
        layer.submodules.self_attention.module = WindowedSelfAttention
    if config.layernorm_zero_centered_gamma:
        normed = ModuleSpec(module=NormedResidual, params={"config": config})
        layer.submodules.self_attn_bda = layer.submodules.mlp_bda = normed
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=norm)


def _local_layer(config: TransformerConfig) -> ModuleSpec:
    layer = get_gpt_layer_local_spec(
        num_experts=config.num_moe_experts, qk_layernorm=config.qk_layernorm, normalization="RMSNorm"
    )
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = CausalAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    return layer


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32, as in the Hugging Face models; works under sequence parallelism."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.adds_one = config.layernorm_zero_centered_gamma
        self.weight = nn.Parameter(
            torch.ones(hidden_size, dtype=config.params_dtype, device=torch.cuda.current_device())
        )
        # megatron-core's mark for weights whose gradients are partial sums on each rank
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)"""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.adds_one:
            return (wide * (1 + self.weight.float())).to(x.dtype)
        return self.weight * wide.to(x.dtype)


class NormedResidual(nn.Module):
    """In place of megatron-core's sum of a layer's output and the residual: the output is normed first."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.norm = RMSNorm(config, config.hidden_size, config.layernorm_epsilon)

    def forward(self, training: bool, fused: bool) -> Callable[..., Tensor]:
        """megatron-core asks for a function and calls it with ((S, B, D) and no bias), residual, dropout of zero."""
        return lambda output, residual, dropout: residual + self.norm(output[0])


class WindowedSelfAttention(SelfAttention):
    """Takes the rotary angles of its kind of layer."""

    def forward(self, *args: Any, rotary_pos_emb: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """rotary_pos_emb: (S, 1, 1, 2 * H): full attention, window, and both once more."""
        kind = 0 if window_of(self.config, self.layer_number) is None else 1
        quarters = rotary_pos_emb.chunk(4, dim=-1)
        return super().forward(*args, rotary_pos_emb=torch.cat(quarters[kind::2], dim=-1), **kwargs)


class Router(TopKRouter):
    """megatron-core's router with logits in float32; its own needs TransformerEngine for that, in 0.16 by mistake."""

    def __init__(self, config: TransformerConfig, **more: Any):
        super().__init__(config=config, **more)
        self.weight.data = self.weight.data.to(torch.cuda.current_device())

    def gating(self, input: Tensor) -> Tensor:
        """(S, B, D) -> (S, B, E) float32"""
        return F.linear(input.float(), self.weight.float())

    def _apply_expert_bias(self, *_: Any, **__: Any) -> None:
        """Nothing: these LLMs have no such bias. megatron-core's compiles a function that does nothing, either."""
