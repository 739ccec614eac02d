"""Real model shapes with random weights, created on the device: no checkpoint and no host memory is needed."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    WhisperConfig,
)
from transformers.models.whisper import modeling_whisper

from nemo_desta.perception.encoders import Beats, BeatsConfig, BeatsEncoder, WhisperEncoder

WHISPER_LARGE_V3 = {
    "d_model": 1280,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "num_mel_bins": 128,
    "max_source_positions": 1500,
}


@dataclass(frozen=True)
class Shape:
    """An LLM with its two encoders. ``batch_tokens``: positions of a batch, padding included; a default.

    ``qformer``: settings of DeSTA2.5's connector that do not follow from the encoder's width.
    """

    name: str
    llm: PretrainedConfig
    batch_tokens: int
    whisper: dict[str, int] = field(default_factory=lambda: dict(WHISPER_LARGE_V3))
    whisper_layer_ids: tuple[int, ...] = (8, 16, 24, 32)
    beats: BeatsConfig = field(default_factory=BeatsConfig)
    beats_layer_ids: tuple[int, ...] = (3, 6, 9, 12)
    qformer: dict[str, Any] = field(default_factory=dict)


def shape(name: str) -> Shape:
    """``qwen3-4b``, ``llama3-8b``, or ``tiny``, which only checks that everything runs."""
    return SHAPES[name]()


def _qwen3_4b() -> Shape:
    llm = Qwen3Config(
        vocab_size=151_936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    return Shape("qwen3-4b", llm, batch_tokens=8192)


def _llama3_8b() -> Shape:
    llm = LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    return Shape("llama3-8b", llm, batch_tokens=8192)


def _tiny() -> Shape:
    llm = Qwen3Config(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
    )
    whisper = {**WHISPER_LARGE_V3, "d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 2}
    return Shape(
        "tiny",
        llm,
        batch_tokens=1024,
        whisper={**whisper, "encoder_ffn_dim": 128, "num_mel_bins": 80},
        whisper_layer_ids=(1, 2),
        beats=BeatsConfig(
            encoder_layers=2,
            encoder_embed_dim=48,
            encoder_ffn_embed_dim=96,
            encoder_attention_heads=4,
            embed_dim=32,
            conv_pos_groups=4,
        ),
        beats_layer_ids=(1, 2),
        qformer={"num_layers": 2, "feed_forward_size": 128},
    )


SHAPES = {"tiny": _tiny, "qwen3-4b": _qwen3_4b, "llama3-8b": _llama3_8b}


def build_llm(shape: Shape, device: torch.device, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """The frozen LLM in eval mode. ``attention``: "sdpa" or "eager"."""
    with torch.device(device):
        llm = AutoModelForCausalLM.from_config(shape.llm, dtype=dtype, attn_implementation=attention)
    return llm.requires_grad_(False).eval()


def build_encoders(
    shape: Shape, device: torch.device, dtype: torch.dtype, attention: str, names: tuple[str, ...]
) -> dict[str, nn.Module]:
    """Encoders by name: "whisper", "beats". ``attention`` is Whisper's; BEATs has its own."""
    built = {
        "whisper": lambda: _whisper(shape, device, dtype, attention),
        "beats": lambda: _beats(shape, device, dtype),
    }
    return {name: built[name]() for name in names}


def _whisper(shape: Shape, device: torch.device, dtype: torch.dtype, attention: str) -> WhisperEncoder:
    config = WhisperConfig(**shape.whisper)
    config._attn_implementation = attention
    with torch.device(device):
        model = modeling_whisper.WhisperEncoder(config).to(dtype)
    return WhisperEncoder(model, num_layers=config.encoder_layers, layer_ids=shape.whisper_layer_ids)


def _beats(shape: Shape, device: torch.device, dtype: torch.dtype) -> BeatsEncoder:
    with torch.device(device):
        model = Beats(shape.beats).to(dtype)
    return BeatsEncoder(model, layer_ids=shape.beats_layer_ids)
