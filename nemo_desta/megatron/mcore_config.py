"""Hugging Face config -> megatron-core config and layers. A feature that is not covered is refused by name.

Layers are TransformerEngine's where it is installed, otherwise megatron-core's own linear layers with the norm of
this file and the attention of attention.py. Letters: S positions, B rows, H head size, D LLM width, E experts.
"""

import importlib.util
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from transformers import PretrainedConfig

from nemo_desta.errors import ConfigError
from nemo_desta.megatron.attention import CausalAttention
from nemo_desta.megatron.layout import Layout
from nemo_desta.megatron.mcore_compat import submodules_of
from nemo_desta.megatron.param_mapping import ARCHITECTURES, expert_width, head_size, num_experts

#: Rotary embeddings without an attention factor; megatron-core has no setting for one.
ROPE_TYPES = ("default", "linear", "llama3")

#: Types whose experts megatron-core's layers do not compute, and what is missing.
REFUSED = {"gpt_oss": "attention sinks, biases and clamping in the experts, MXFP4 weights"}

#: Settings of an LLM's config that change the logits after the head.
LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")

#: Features by config key: the value that means "absent", and a name for the message.
ABSENT = {
    "attention_bias": (False, "biases in the attention projections"),
    "mlp_bias": (False, "biases in the MLP"),
    "use_sliding_window": (False, "sliding-window attention"),
    "sliding_window": (None, "sliding-window attention"),
    "quantization_config": (None, "quantised weights"),
}


def check_covered(config: PretrainedConfig) -> None:
    """Refuse an LLM that megatron-core would not compute exactly.

    Raises:
        ConfigError: the message names the feature.
    """
    if missing := REFUSED.get(config.model_type):
        raise ConfigError(
            f"strategy=megatron does not cover '{config.model_type}': {missing}. strategy=ddp and fsdp2 run it"
        )
    if config.model_type not in ARCHITECTURES:
        raise ConfigError(
            f"strategy=megatron covers LLMs of type {', '.join(ARCHITECTURES)}, found '{config.model_type}'. "
            "strategy=ddp and fsdp2 run any causal LLM of Hugging Face"
        )
    for key, (absent, what) in ABSENT.items():
        if getattr(config, key, absent) not in (absent, None):
            raise ConfigError(f"strategy=megatron does not cover {what} (LLM config: {key}={getattr(config, key)!r})")
    if num_experts(config):
        _check_experts(config)
    changes = {name: getattr(config, name, None) for name in LOGIT_TRANSFORMS}
    if found := {name: value for name, value in changes.items() if value not in (None, 1.0)}:
        raise ConfigError(f"strategy=megatron does not cover logits that are changed after the head, found {found}")
    kinds = set(getattr(config, "layer_types", None) or [])
    if kinds - {"full_attention"}:
        raise ConfigError(
            f"strategy=megatron covers full attention in every layer, found layer_types {', '.join(sorted(kinds))}"
        )
    if config.hidden_act != "silu":
        raise ConfigError(f"strategy=megatron covers hidden_act=silu, found '{config.hidden_act}'")
    rope = rope_settings(config)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise ConfigError(f"strategy=megatron covers rope types {', '.join(ROPE_TYPES)}, found '{kind}'")
    partial = rope.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
    if partial not in (None, 1, 1.0):
        raise ConfigError(f"strategy=megatron covers rotation of whole heads, found partial_rotary_factor={partial}")


def rope_settings(config: PretrainedConfig) -> dict:
    """Rotary settings of transformers 5 (rope_parameters) or 4 (rope_scaling)."""
    return dict(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {})


def rotary_frequencies(config: PretrainedConfig) -> Tensor:
    """(H / 2,) float32: the frequencies of the Hugging Face model itself."""
    family = "".join(word.capitalize() for word in config.model_type.split("_"))
    module = import_module(f"transformers.models.{config.model_type}.modeling_{config.model_type}")
    rotary = getattr(module, f"{family}RotaryEmbedding")(config)
    if rotary.attention_scaling != 1.0:
        raise ConfigError(f"strategy=megatron does not cover a rope attention factor of {rotary.attention_scaling}")
    return rotary.inv_freq.detach().float()


def transformer_config(
    config: PretrainedConfig, layout: Layout, *, dtype: torch.dtype, recompute: bool = False
) -> TransformerConfig:
    """megatron-core's config for a covered LLM. It is frozen: no dropout, no initialisation of weights."""
    check_covered(config)
    features = ARCHITECTURES[config.model_type]
    stages = layout.layers_per_stage(config.num_hidden_layers)
    return TransformerConfig(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        # more ranks than key-value heads: every rank holds one head, which the weight table copies
        num_query_groups=max(config.num_key_value_heads, layout.tensor_parallel_size),
        kv_channels=head_size(config),
        normalization="RMSNorm",
        layernorm_epsilon=config.rms_norm_eps,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        add_qkv_bias="qkv_bias" in features,
        qk_layernorm="qk_norm" in features,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=layout.tensor_parallel_size,
        pipeline_model_parallel_size=layout.pipeline_parallel_size,
        context_parallel_size=layout.context_parallel_size,
        pipeline_model_parallel_layout=_stage_layout(stages) if len(set(stages)) > 1 else None,
        sequence_parallel=layout.sequence_parallel,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        variable_seq_lengths=True,  # batches are ragged: stages send each other the shape
        moe_token_dispatcher_type="alltoall",  # checked for dense models, too, when lengths vary
        **(_expert_settings(config, layout) if num_experts(config) else {}),
        perform_initialization=False,  # all values come from the checkpoint
        recompute_granularity="full" if recompute else None,
        recompute_method="uniform" if recompute else None,
        recompute_num_layers=1 if recompute else None,
    )


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
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=norm)


def has_transformer_engine() -> bool:
    """Whether TransformerEngine is installed.

    Raises:
        ImportError: it is installed, but megatron-core cannot use it.
    """
    if importlib.util.find_spec("transformer_engine") is None:
        return False
    import transformer_engine.pytorch  # noqa: F401  a broken install fails here with its own message
    from megatron.core.extensions.transformer_engine import HAVE_TE

    if not HAVE_TE:
        raise ImportError("transformer_engine is installed but megatron-core cannot use it: reinstall or remove it")
    return True


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32, as in the Hugging Face models; works under sequence parallelism."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(
            torch.ones(hidden_size, dtype=config.params_dtype, device=torch.cuda.current_device())
        )
        # megatron-core's mark for weights whose gradients are partial sums on each rank
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)"""
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


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


def _check_experts(config: PretrainedConfig) -> None:
    if getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) != 1:
        raise ConfigError(
            "strategy=megatron covers experts in every layer, found "
            f"mlp_only_layers={config.mlp_only_layers}, decoder_sparse_step={config.decoder_sparse_step}"
        )
    if config.num_experts_per_tok == 1 and _scales_to_one(config):
        raise ConfigError(
            "strategy=megatron does not cover one expert per token whose weight is always 1 (num_experts_per_tok=1)"
        )


def _scales_to_one(config: PretrainedConfig) -> bool:
    """Whether the weights of a token's experts sum to one; otherwise they are shares of all experts' softmax."""
    return getattr(config, "norm_topk_prob", True)  # Mixtral has no setting and scales


def _expert_settings(config: PretrainedConfig, layout: Layout) -> dict:
    """No auxiliary loss: router and experts are frozen, and it would pull the projector towards an even load."""
    return {
        "num_moe_experts": num_experts(config),
        "moe_ffn_hidden_size": expert_width(config),
        "moe_router_topk": config.num_experts_per_tok,
        "moe_router_pre_softmax": not _scales_to_one(config),
        "moe_router_load_balancing_type": "none",
        "moe_aux_loss_coeff": 0.0,
        "moe_grouped_gemm": has_transformer_engine(),  # otherwise one expert after the other
        "expert_model_parallel_size": layout.expert_parallel_size,
        "expert_tensor_parallel_size": 1,
    }


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


def _stage_layout(stages: list[int]) -> list[list[str]]:
    layout = [["decoder"] * count for count in stages]
    layout[0].insert(0, "embedding")
    layout[-1].append("loss")
    return layout
