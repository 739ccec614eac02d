"""EAT as a plain module: filter bank in, the output of every block out (arXiv 2401.03497). SSLAM is the same network.

Tokens are patches of 16 frames by 16 bands, in time-major order: 8 per 160 ms, after one class token (CLS). Module
names are those of the public checkpoints. Letters: B rows, T frames, N patches, C width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from nemo_desta.errors import ConfigError
from nemo_desta.perception.masks import is_valid

PATCH = 16  # frames, bands
BANDS_PER_STEP = 8  # 128 bands in patches of 16
#: What this module implements, by the names of a checkpoint's config.
FIXED = {
    "patch_size": PATCH,
    "stride": PATCH,
    "in_chans": 1,
    "mel_bins": PATCH * BANDS_PER_STEP,
    "layer_norm_first": False,
    "norm_affine": True,
    "fixed_positions": True,
}


@dataclass(frozen=True)
class EatConfig:
    """Sizes of an EAT, under the names of its config.json; defaults are those of the base model."""

    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    norm_eps: float = 1e-6
    model_variant: str = "pretrain"
    num_classes: int = 527

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "EatConfig":
        """Read a config.json; keys of the original's training and of transformers are passed over.

        Raises:
            ConfigError: not EAT's config, or a value that is not implemented here.
        """
        if missing := {"embed_dim", "depth", "num_heads"} - config.keys():
            raise ConfigError(f"this is no config of EAT or SSLAM: it has no '{min(missing)}'")
        for name, value in FIXED.items():
            if config.get(name, value) != value:
                raise ConfigError(f"EAT's config '{name}' is {config[name]!r}; only {value!r} is implemented")
        return cls(**{field.name: config[field.name] for field in fields(cls) if field.name in config})


class Eat(nn.Module):
    """Patches with fixed two-dimensional positions, a class token, post-norm blocks; a head if it is fine-tuned."""

    def __init__(self, config: EatConfig, *, num_layers: int | None = None):
        """``num_layers``: build only that many first blocks, and then no head; all if None."""
        super().__init__()
        self.config = config
        width, num_layers = config.embed_dim, num_layers or config.depth
        self.local_encoder = nn.ModuleDict({"proj": nn.Conv2d(1, width, PATCH, stride=PATCH)})
        self.extra_tokens = nn.Parameter(torch.zeros(1, 1, width))
        self.pre_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.blocks = nn.ModuleList(EatBlock(config) for _ in range(num_layers))
        classify = config.model_variant == "finetune" and num_layers == config.depth
        self.fc_norm = nn.LayerNorm(width) if classify else None
        self.head = nn.Linear(width, config.num_classes) if classify else None

    def forward(self, fbank: torch.Tensor, token_lens: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """fbank: (B, T, 128) normalised, token_lens: (B,) valid patches (all if None) -> per block (B, 1 + N, C).

        N = 8 * floor(T / 16); CLS comes first. Patches beyond ``token_lens`` are not seen by the other tokens.
        """
        projection = self.local_encoder["proj"]
        patches = projection(fbank.to(projection.weight.dtype)[:, None])  # (B, C, T / 16, 8)
        tokens = patches.flatten(2).transpose(1, 2)  # (B, N, C), time-major
        tokens = tokens + positions(patches.shape[2], self.config.embed_dim).to(tokens.device, tokens.dtype)
        hidden = self.pre_norm(torch.cat([self.extra_tokens.expand(len(tokens), -1, -1), tokens], dim=1))
        mask = None if token_lens is None else is_valid(hidden, token_lens + 1)
        outputs = []
        for block in self.blocks:
            hidden = block(hidden, mask)
            outputs.append(hidden)
        return tuple(outputs)

    def classify(self, last: torch.Tensor) -> torch.Tensor:
        """last: (B, 1 + N, C) of the last block -> (B, num_classes) logits of a fine-tuned model."""
        return self.head(self.fc_norm(last[:, 0]))


class EatBlock(nn.Module):
    """Post-norm transformer block."""

    def __init__(self, config: EatConfig):
        super().__init__()
        width, inner = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.attn = Attention(width, config.num_heads, qkv_bias=config.qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """hidden: (B, 1 + N, C), mask: (B, 1 + N) True = valid, or None -> (B, 1 + N, C)."""
        hidden = self.norm1(hidden + self.attn(hidden, mask))
        return self.norm2(hidden + self.mlp["fc2"](F.gelu(self.mlp["fc1"](hidden))))


class Attention(nn.Module):
    """Self-attention with one projection for query, key and value."""

    def __init__(self, width: int, num_heads: int, *, qkv_bias: bool):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """hidden: (B, 1 + N, C), mask: (B, 1 + N) True = valid, or None -> (B, 1 + N, C)."""
        query, key, value = self.qkv(hidden).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        keys = None if mask is None else mask[:, None, None]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=keys)
        return self.proj(attended.transpose(1, 2).flatten(2))


def positions(num_steps: int, width: int) -> torch.Tensor:
    """(8 * num_steps, width) float32, time-major: sines and cosines of the band, then those of the step."""
    quarter = width // 4
    rates = 10_000.0 ** (-torch.arange(quarter, dtype=torch.float64, device="cpu") / quarter)
    angles = torch.arange(max(num_steps, BANDS_PER_STEP), dtype=torch.float64, device="cpu")[:, None] * rates
    table = torch.cat([angles.sin(), angles.cos()], dim=1).float()  # (places, width / 2)
    bands, steps = table[:BANDS_PER_STEP].repeat(num_steps, 1), table[:num_steps].repeat_interleave(BANDS_PER_STEP, 0)
    return torch.cat([bands, steps], dim=1)
