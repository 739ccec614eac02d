"""Hugging Face config -> megatron-core config. A feature that is not covered is refused by name.

Letter: H head size.
"""

import importlib.util
from copy import copy

import torch
import torch.nn.functional as F
import transformers
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from transformers import PretrainedConfig

from nemo_desta.core.cost import num_experts
from nemo_desta.errors import ConfigError
from nemo_desta.megatron.layout import Layout
from nemo_desta.megatron.param_mapping import ARCHITECTURES, expert_width, head_size


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


#: Rotary embeddings without an attention factor; megatron-core has no setting for one.
ROPE_TYPES = ("default", "linear", "llama3")

#: Types that megatron-core's layers do not compute here, and what is missing.
REFUSED = {
    "gpt_oss": "attention sinks, biases and clamping in the experts, MXFP4 weights",
    "gemma2": "soft caps on the scores of attention",
    **dict.fromkeys(("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"), "gated delta nets"),
}

#: Of the gate of an MLP or expert, by the name that Hugging Face has for it.
ACTIVATIONS = {"silu": F.silu, "gelu_pytorch_tanh": gelu_tanh}

#: Settings of an LLM's config that change the logits after the head.
LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")

#: Features by config key: the value that means "absent", and a name for the message.
ABSENT = {
    "attention_bias": (False, "biases in the attention projections"),
    "mlp_bias": (False, "biases in the MLP"),
    "use_sliding_window": (False, "sliding-window attention"),
    "attn_logit_softcapping": (None, "soft caps on the scores of attention"),
    "use_bidirectional_attention": (False, "attention in both directions"),
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
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    covered = {"full_attention", "sliding_attention"} if has_windows(config) else {"full_attention"}
    if kinds != covered:
        raise ConfigError(
            f"strategy=megatron covers layer_types {', '.join(sorted(covered))} of '{config.model_type}', found "
            f"{', '.join(sorted(kinds))}"
        )
    if not has_windows(config) and getattr(config, "sliding_window", None) is not None:
        raise ConfigError(f"strategy=megatron does not cover sliding windows: sliding_window={config.sliding_window}")
    if _activation(config) not in ACTIVATIONS:
        raise ConfigError(
            f"strategy=megatron covers hidden_act={', '.join(ACTIVATIONS)}, found '{_activation(config)}'"
        )
    for rope in rope_settings(config):
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ROPE_TYPES:
            raise ConfigError(f"strategy=megatron covers rope types {', '.join(ROPE_TYPES)}, found '{kind}'")
        partial = rope.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
        if partial not in (None, 1, 1.0):
            raise ConfigError(
                f"strategy=megatron covers rotation of whole heads, found partial_rotary_factor={partial}"
            )


def has_windows(config: PretrainedConfig) -> bool:
    """Whether layers of ``layer_types`` sliding_attention attend to ``sliding_window`` positions."""
    return "windows" in ARCHITECTURES[config.model_type]


def rope_settings(config: PretrainedConfig) -> list[dict]:
    """Rotary settings, by kind of layer, of transformers 5 (rope_parameters) or 4 (rope_scaling)."""
    found = dict(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {})
    return [kind for kind in found.values() if kind] if "full_attention" in found else [found]


def rotary_frequencies(config: PretrainedConfig) -> Tensor:
    """(H / 2,) float32: the frequencies of the Hugging Face model itself.

    With windows (H,): those of layers with full attention, then those of layers with a window.
    """
    kind = config.model_type.removesuffix("_text")
    family = "".join(word.capitalize() for word in kind.split("_"))
    code = getattr(getattr(transformers.models, kind), f"modeling_{kind}")  # `kind` is one of ARCHITECTURES
    rotary_class = getattr(code, f"{family}RotaryEmbedding")
    rotary = rotary_class(config)
    prefixes = ("full_attention_", "sliding_attention_") if hasattr(rotary, "full_attention_inv_freq") else ("",)
    found = [
        (getattr(rotary, f"{prefix}inv_freq"), getattr(rotary, f"{prefix}attention_scaling")) for prefix in prefixes
    ]
    if has_windows(config) and len(found) == 1:  # transformers 4: one object for each base
        local = copy(config)
        local.rope_theta, local.rope_scaling = config.rope_local_base_freq, {"rope_type": "default"}
        rotary = rotary_class(local)
        found.append((rotary.inv_freq, rotary.attention_scaling))
    if factors := [factor for _, factor in found if factor != 1.0]:
        raise ConfigError(f"strategy=megatron does not cover a rope attention factor of {factors[0]}")
    return torch.cat([frequencies.detach().float() for frequencies, _ in found])


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
        activation_func=ACTIVATIONS[_activation(config)],
        add_bias_linear=False,
        add_qkv_bias="qkv_bias" in features,
        qk_layernorm="qk_norm" in features,
        layernorm_zero_centered_gamma="four_norms" in features,
        **(_window_settings(config) if has_windows(config) else {}),
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


def _activation(config: PretrainedConfig) -> str:
    return getattr(config, "hidden_activation", None) or config.hidden_act


def _window_settings(config: PretrainedConfig) -> dict:
    return {
        "softmax_scale": config.query_pre_attn_scalar**-0.5,
        "window_size": (config.sliding_window - 1, 0),
        "window_attn_skip_freq": [int(kind == "sliding_attention") for kind in config.layer_types],
    }


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


def _stage_layout(stages: list[int]) -> list[list[str]]:
    layout = [["decoder"] * count for count in stages]
    layout[0].insert(0, "embedding")
    layout[-1].append("loss")
    return layout
