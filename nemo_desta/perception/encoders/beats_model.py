"""BEATs as a plain trainable module: filter bank in, the output of every block out (arXiv 2212.09058).

Tokens are patches of 16 frames by 16 bands, in time-major order: 8 per 160 ms. Module names are those of the public
checkpoints (`beats_checkpoint.py` maps the one that differs). Letters: B rows, T frames, N tokens, C width, H heads.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from nemo_desta.config import nearest
from nemo_desta.errors import ConfigError
from nemo_desta.perception.encoders import beats_checkpoint
from nemo_desta.perception.encoders.base import resolve_layer_ids
from nemo_desta.perception.masks import is_valid, zero_beyond

BANDS_PER_STEP = 8  # 128 bands in patches of 16


@dataclass(frozen=True)
class BeatsConfig:
    """The ``cfg`` of a BEATs checkpoint, under its names; defaults are the base model's.

    Dropout and layer-drop rates are carried along for the checkpoint only: this module drops nothing.
    """

    encoder_layers: int = 12
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    activation_fn: str = "gelu"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    encoder_layerdrop: float = 0.0
    dropout_input: float = 0.0
    layer_norm_first: bool = False
    conv_bias: bool = False
    conv_pos: int = 128
    conv_pos_groups: int = 16
    relative_position_embedding: bool = True
    num_buckets: int = 320
    max_distance: int = 800
    gru_rel_pos: bool = True
    deep_norm: bool = True
    input_patch_size: int = 16
    layer_wise_gradient_decay_ratio: float = 0.6
    embed_dim: int = 512
    finetuned_model: bool = False
    predictor_dropout: float = 0.0
    predictor_class: int = 527

    def __post_init__(self) -> None:
        fixed = {
            "activation_fn": "gelu",
            "layer_norm_first": False,
            "input_patch_size": 16,
            "relative_position_embedding": True,
            "gru_rel_pos": True,
        }
        for name, value in fixed.items():
            if getattr(self, name) != value:
                raise ConfigError(f"BEATs cfg '{name}' is {getattr(self, name)!r}; only {value!r} is implemented")

    @classmethod
    def from_dict(cls, cfg: Mapping[str, Any]) -> "BeatsConfig":
        """Raises `ConfigError` for a key that BEATs does not have, or a value that is not implemented here."""
        known = [field.name for field in fields(cls)]
        for key in cfg:
            if key not in known:
                raise ConfigError(f"unknown BEATs cfg key '{key}'.{nearest(str(key), known)}")
        return cls(**cfg)


class Beats(nn.Module):
    """Patch embedding and transformer; with the fine-tuned models' predictor when the config says so."""

    def __init__(
        self,
        config: BeatsConfig | Mapping[str, Any],
        *,
        num_layers: int | None = None,
        label_dict: Mapping[Any, str] | None = None,
    ):
        """Random weights as BEATs starts from.

        ``num_layers``: build only that many first blocks, and then no predictor; all if None. ``label_dict``: class
        number -> name, of a fine-tuned model.
        """
        super().__init__()
        self.config = config if isinstance(config, BeatsConfig) else BeatsConfig.from_dict(config)
        self.label_dict = None if label_dict is None else dict(label_dict)
        config, patch = self.config, self.config.input_patch_size
        self.patch_embedding = nn.Conv2d(1, config.embed_dim, patch, stride=patch, bias=config.conv_bias)
        self.layer_norm = nn.LayerNorm(config.embed_dim)
        same = config.embed_dim == config.encoder_embed_dim
        self.post_extract_proj = nn.Identity() if same else nn.Linear(config.embed_dim, config.encoder_embed_dim)
        num_layers = num_layers or config.encoder_layers
        self.encoder = BeatsTransformer(config, num_layers)
        classify = config.finetuned_model and num_layers == config.encoder_layers
        self.predictor = nn.Linear(config.encoder_embed_dim, config.predictor_class) if classify else None

    def forward(self, fbank: torch.Tensor, token_lens: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """fbank: (B, T, 128) normalised, token_lens: (B,) valid tokens (all if None) -> per block (B, N, C).

        N = 8 * floor(T / 16). Tokens beyond ``token_lens`` are not seen by the others; their own outputs mean nothing.
        """
        fbank = fbank.to(self.patch_embedding.weight.dtype)
        patches = self.patch_embedding(fbank[:, None])  # (B, embed_dim, T / 16, 8)
        tokens = patches.flatten(2).transpose(1, 2)  # (B, N, embed_dim), time-major
        tokens = self.post_extract_proj(self.layer_norm(tokens))
        return self.encoder(tokens, None if token_lens is None else is_valid(tokens, token_lens))

    def classify(self, features: torch.Tensor, token_lens: torch.Tensor) -> torch.Tensor:
        """features: (B, N, C) of the last block, token_lens: (B,) -> (B, predictor_class) probabilities."""
        logits = zero_beyond(self.predictor(features), token_lens)
        return (logits.sum(1) / token_lens[:, None]).sigmoid()

    @classmethod
    def from_checkpoint(cls, path: str | Path, layer_ids: Iterable[int] | None = None) -> "Beats":
        """Load a public checkpoint in float32. ``layer_ids``: build no block after the highest of these (1-based).

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a BEATs checkpoint, a cfg that is not implemented, or bad ``layer_ids``.
        """
        checkpoint = beats_checkpoint.load(path)
        config = BeatsConfig.from_dict(checkpoint["cfg"])
        last = max(resolve_layer_ids(layer_ids, config.encoder_layers))
        with torch.device("meta"):
            model = cls(config, num_layers=last, label_dict=checkpoint.get("label_dict"))
        weights = beats_checkpoint.from_official(checkpoint["model"], model.state_dict(), where=str(path))
        model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
        return model

    def save_checkpoint(self, path: str | Path) -> None:
        """Write ``{'cfg', 'model'[, 'label_dict']}`` in the form of the public checkpoints.

        Raises:
            ValueError: the model was built without its last blocks.
        """
        built = len(self.encoder.layers)
        if built != self.config.encoder_layers:
            raise ValueError(f"this BEATs holds {built} of {self.config.encoder_layers} blocks; save a whole one")
        state = beats_checkpoint.to_official(self.state_dict(), self.config.encoder_layers)
        beats_checkpoint.save(path, cfg=asdict(self.config), model=state, label_dict=self.label_dict)


class BeatsTransformer(nn.Module):
    """Convolutional positions, then post-norm blocks that share one table of relative positions."""

    def __init__(self, config: BeatsConfig, num_layers: int):
        super().__init__()
        width = config.encoder_embed_dim
        self.pos_conv = nn.Sequential(PositionConv(width, config.conv_pos, config.conv_pos_groups))
        self.layer_norm = nn.LayerNorm(width)
        self.relative_attention_bias = nn.Embedding(config.num_buckets, config.encoder_attention_heads)
        nn.init.normal_(self.relative_attention_bias.weight, std=0.02)
        self.layers = nn.ModuleList(BeatsBlock(config) for _ in range(num_layers))
        self.num_buckets = config.num_buckets
        self.max_distance = config.max_distance

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """tokens: (B, N, C), mask: (B, N) True = valid, or None -> per block (B, N, C)."""
        if mask is not None:
            tokens = torch.where(mask[..., None], tokens, tokens.new_zeros(()))
        num_tokens = tokens.shape[1]
        positions = self.pos_conv(tokens.transpose(1, 2)).transpose(1, 2)
        hidden = self.layer_norm(tokens + positions)
        bias = self.position_bias(num_tokens)
        outputs = []
        for layer in self.layers:
            hidden = layer(hidden, bias, mask)
            outputs.append(hidden)
        return tuple(outputs)

    def position_bias(self, num_tokens: int) -> torch.Tensor:
        """(H, N, N): entry [h, query, key], a function of key - query in the flattened order of tokens."""
        distances = torch.arange(1 - num_tokens, num_tokens, device="cpu")
        buckets = relative_buckets(distances, self.num_buckets, self.max_distance)
        by_distance = self.relative_attention_bias(buckets.to(self.relative_attention_bias.weight.device)).T
        place = torch.arange(num_tokens, device=by_distance.device)
        return by_distance[:, place[None] - place[:, None] + num_tokens - 1]


class PositionConv(nn.Module):
    """Grouped convolution over tokens whose kernel is weight-normalised per tap, then GELU."""

    def __init__(self, width: int, kernel_size: int, groups: int):
        super().__init__()
        direction = torch.randn(width, width // groups, kernel_size) * math.sqrt(4 / (kernel_size * width))
        self.weight_g = nn.Parameter(tap_norms(direction))
        self.weight_v = nn.Parameter(direction)
        self.bias = nn.Parameter(torch.zeros(width))
        self.groups = groups

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: (B, C, N) -> (B, C, N)."""
        direction = self.weight_v.float()
        weight = (self.weight_g.float() * direction / tap_norms(direction)).to(tokens.dtype)
        padding = weight.shape[-1] // 2
        positions = F.conv1d(tokens, weight, self.bias, padding=padding, groups=self.groups)
        return F.gelu(positions[..., : tokens.shape[-1]])  # an even kernel gives one step too many


def tap_norms(weight: torch.Tensor) -> torch.Tensor:
    """weight: (out, in, kernel) -> (1, 1, kernel)."""
    return weight.norm(dim=(0, 1), keepdim=True)


class BeatsBlock(nn.Module):
    """Post-norm transformer block; DeepNorm weighs the residual by (2 * blocks) ** 0.25."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        width = config.encoder_embed_dim
        self.residual_scale = (2 * config.encoder_layers) ** 0.25 if config.deep_norm else 1.0
        self.self_attn = GatedBiasAttention(width, config.encoder_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.encoder_ffn_embed_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_embed_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)
        gain = (8 * config.encoder_layers) ** -0.25 if config.deep_norm else 1.0
        attention = self.self_attn
        for linear, scale in (
            (attention.q_proj, 1.0),
            (attention.k_proj, 1.0),
            (attention.v_proj, gain),
            (attention.out_proj, gain),
            (self.fc1, gain),
            (self.fc2, gain),
        ):
            nn.init.xavier_normal_(linear.weight, gain=scale)
            nn.init.zeros_(linear.bias)

    def forward(self, hidden: torch.Tensor, position_bias: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """hidden: (B, N, C), position_bias: (H, N, N), mask: (B, N) or None -> (B, N, C)."""
        hidden = self.self_attn_layer_norm(self.residual_scale * hidden + self.self_attn(hidden, position_bias, mask))
        return self.final_layer_norm(self.residual_scale * hidden + self.fc2(F.gelu(self.fc1(hidden))))


class GatedBiasAttention(nn.Module):
    """Self-attention whose relative position bias each query scales per head by a gate of its own."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.grep_linear = nn.Linear(width // num_heads, 8)
        self.grep_a = nn.Parameter(torch.ones(1, num_heads, 1, 1))

    def forward(self, hidden: torch.Tensor, position_bias: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """hidden: (B, N, C), position_bias: (H, N, N), mask: (B, N) True = valid, or None -> (B, N, C)."""
        query, key, value = (
            proj(hidden).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, N, C / H)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        bias = self.gate(query) * position_bias  # (B, H, N, N)
        if mask is not None:
            bias = bias.masked_fill(~mask[:, None, None], float("-inf"))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def gate(self, query: torch.Tensor) -> torch.Tensor:
        """query: (B, H, N, C / H) -> (B, H, N, 1), near 2 when the two inner gates close."""
        inner, outer = self.grep_linear(query).unflatten(-1, (2, 4)).sum(-1).sigmoid().split(1, dim=-1)
        return inner * (outer * self.grep_a - 1.0) + 2.0


def relative_buckets(distances: torch.Tensor, num_buckets: int, max_distance: int) -> torch.Tensor:
    """distances: key - query -> bucket numbers of the same shape.

    Half of the buckets serve each sign (positive: the upper half); within a half the first half is one distance each,
    the rest grows logarithmically up to ``max_distance``, beyond which all share the last bucket (as in T5).
    """
    per_sign = num_buckets // 2
    exact = per_sign // 2
    size = distances.abs()
    grown = (size.clamp(min=1).float() / exact).log() / math.log(max_distance / exact) * (per_sign - exact)
    coarse = (exact + grown.long()).clamp(max=per_sign - 1)
    return torch.where(size < exact, size, coarse) + per_sign * (distances > 0)
