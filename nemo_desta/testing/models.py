"""Tiny models of the real classes, made on the spot with random weights, for tests and examples."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nemo_desta.core.build import embedding_rms
from nemo_desta.core.model import SpeechLM
from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.perception.fused import FusedPerception
from nemo_desta.perception.projector import build_projector
from nemo_desta.testing.data import tiny_tokenizer
from nemo_desta.testing.perception import tiny_beats, tiny_encoders, tiny_whisper


def build_tiny_llm(
    *,
    kind: str = "qwen3",
    template: str = "chatml",
    pad: str = "own",
    tokenizer: PreTrainedTokenizerBase | None = None,
    **changes: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A two-layer Qwen3, Qwen3-MoE, Gemma3, Llama or Gemma2 (whose logits are capped) and its tokenizer.

    ``tokenizer`` replaces `tiny_tokenizer`'s; ``changes`` are further or other values of the LLM's config.
    """
    from transformers import (
        Gemma2Config,
        Gemma2ForCausalLM,
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
    )

    tokenizer = tokenizer or tiny_tokenizer(template, pad=pad)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    torch.manual_seed(0)
    if kind == "qwen3":
        llm = Qwen3ForCausalLM(Qwen3Config(**{**shape, "tie_word_embeddings": True, **changes}))
    elif kind == "qwen3_moe":
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
        llm = Qwen3MoeForCausalLM(Qwen3MoeConfig(**{**shape, **experts, **changes}))
    elif kind == "llama":
        llm = LlamaForCausalLM(LlamaConfig(**{**shape, "tie_word_embeddings": False, **changes}))
    elif kind == "gemma3":
        layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
        llm = Gemma3ForCausalLM(Gemma3TextConfig(**{**shape, **layers, "query_pre_attn_scalar": 12, **changes}))
    elif kind == "gemma2":
        capped = {"query_pre_attn_scalar": 8, "final_logit_softcapping": 0.2}
        llm = Gemma2ForCausalLM(Gemma2Config(**{**shape, **capped, **changes}))
    else:
        raise ValueError(f"kind must be qwen3, qwen3_moe, gemma3, llama or gemma2, found '{kind}'")
    return llm, tokenizer


def tiny_llm(folder: str | Path, **options: Any) -> Path:
    """Write `build_tiny_llm`'s LLM and tokenizer; returns the folder."""
    llm, tokenizer = build_tiny_llm(**options)
    llm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def tiny_speech_lm(projector: str = "window", **knobs: Any) -> SpeechLM:
    """A `SpeechLM` of ready parts in memory: a tiny LLM, Whisper, BEATs and the projector with its ``knobs``."""
    llm, tokenizer = build_tiny_llm()
    encoders = tiny_encoders()
    built = build_projector(projector, encoders, llm.config.hidden_size, output_rms=embedding_rms(llm), **knobs)
    return SpeechLM(llm, FusedPerception(encoders, built), PromptBuilder(tokenizer))


def tiny_config(folder: str | Path, **llm: Any) -> dict[str, Any]:
    """NeMo's ``model`` section over tiny Whisper, BEATs and LLM folders that are written below ``folder``."""
    folder = Path(folder)
    tiny_llm(folder / "llm", **llm)
    tiny_whisper(folder / "whisper", window_secs=2.0)
    tiny_beats(folder / "beats.pt")
    return {
        "llm": {"path": str(folder / "llm")},
        "perception": {
            "encoders": {
                "whisper": {"name": "whisper", "path": str(folder / "whisper")},
                "beats": {"name": "beats", "path": str(folder / "beats.pt")},
            },
            "projector": {"name": "window"},
        },
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1.0e-2},
    }
