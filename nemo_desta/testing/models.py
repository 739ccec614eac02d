"""Tiny models of the real classes, made on the spot with random weights, for tests and examples."""

from pathlib import Path
from typing import Any

import torch

from nemo_desta.testing.data import tiny_tokenizer
from nemo_desta.testing.perception import tiny_beats, tiny_whisper


def tiny_llm(
    folder: str | Path,
    *,
    kind: str = "qwen3",
    template: str = "chatml",
    pad: str = "own",
    tokenizer: Any = None,
    **changes: Any,
) -> Path:
    """Write a two-layer Qwen3, Llama or Gemma2 (whose logits are capped) with a tokenizer; returns the folder.

    ``tokenizer`` replaces `tiny_tokenizer`'s; ``changes`` are further or other values of the model's config.
    """
    from transformers import (
        Gemma2Config,
        Gemma2ForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
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
    elif kind == "llama":
        llm = LlamaForCausalLM(LlamaConfig(**{**shape, "tie_word_embeddings": False, **changes}))
    elif kind == "gemma2":
        capped = {"query_pre_attn_scalar": 8, "final_logit_softcapping": 0.2}
        llm = Gemma2ForCausalLM(Gemma2Config(**{**shape, **capped, **changes}))
    else:
        raise ValueError(f"kind must be qwen3, llama or gemma2, found '{kind}'")
    llm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


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
