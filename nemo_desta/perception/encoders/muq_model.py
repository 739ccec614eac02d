"""MuQ as a plain module: normalised mel spectrogram in, the output of every conformer block out (arXiv 2501.01108).

Two strided convolution blocks make one token of four mel frames. Module names are those of the public checkpoint.
Letters: B rows, T mel frames, N tokens, C width, H heads, F mel bands.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from nemo_desta.errors import ConfigError
from nemo_desta.perception.encoders.muq_mel import NUM_BANDS
from nemo_desta.perception.masks import is_valid, zero_beyond

FRAMES_PER_TOKEN = 4
FRONT_ROWS = 4  # rows in the convolutions at a time: 30 s of MuQ-large take 200 MB per activation in float32
#: What this module implements, by the names of a checkpoint's config.
FIXED = {"label_rate": 25, "hop_length": 240, "n_mels": NUM_BANDS}
FIXED_CONFORMER = {"position_embeddings_type": "rotary", "hidden_act": "swish", "layer_norm_eps": 1e-5}


@dataclass(frozen=True)
class MuqConfig:
    """Sizes of a MuQ, under the names of its config.json; defaults are those of MuQ-large."""

    encoder_dim: int = 1024
    encoder_depth: int = 12
    conv_dim: int = 512
    intermediate_size: int = 4096
    num_attention_heads: int = 16
    conv_depthwise_kernel_size: int = 31
    rotary_embedding_base: float = 10_000
    melspec_2048_mean: float = 6.768444971712967
    melspec_2048_std: float = 18.417922652295623

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "MuqConfig":
        """Read a config.json, whose sections ``w2v2_config`` and ``stat`` hold a part of the sizes.

        Raises:
            ConfigError: not MuQ's config, or a value that is not implemented here.
        """
        if missing := {"encoder_dim", "encoder_depth", "conv_dim", "w2v2_config", "stat"} - config.keys():
            raise ConfigError(f"this is no config of MuQ: it has no '{min(missing)}'")
        conformer = config["w2v2_config"]
        for section, fixed in ((config, FIXED), (conformer, FIXED_CONFORMER)):
            for name, value in fixed.items():
                if section.get(name, value) != value:
                    raise ConfigError(f"MuQ's config '{name}' is {section[name]!r}; only {value!r} is implemented")
        given = {**conformer, **config["stat"], **config}
        return cls(**{field.name: given[field.name] for field in fields(cls) if field.name in given})


class Muq(nn.Module):
    """Convolutional front and conformer; the quantiser and the heads of the pre-training are left out."""

    def __init__(self, config: MuqConfig, *, num_layers: int | None = None):
        """``num_layers``: build only that many first blocks, and then no final norm; all if None."""
        super().__init__()
        self.config = config
        self.conv = ConvFront(config)
        self.conformer = Conformer(config, num_layers or config.encoder_depth)

    def forward(
        self, mel: torch.Tensor, token_lens: torch.Tensor | None = None, *, alone: bool = True
    ) -> tuple[torch.Tensor, ...]:
        """mel: (B, T, F) normalised, token_lens: (B,) valid tokens (all if None) -> per block (B, N, C).

        N = ceil(T / 4). Padding is no key of the attention. With ``alone`` no convolution reads it either, so that a
        row equals the same row without padding (of a multiple of four frames); otherwise the convolutions read it,
        as in the original. The last block's output passes the final LayerNorm.
        """
        mel = mel.to(self.conv.linear.weight.dtype)
        if token_lens is None:
            return self.conformer(self.conv(mel, None), None, None)
        rows = zip(mel.split(FRONT_ROWS), token_lens.split(FRONT_ROWS), strict=True)
        tokens = torch.cat([self.conv(some, lens if alone else None) for some, lens in rows])
        tokens, mask = zero_beyond(tokens, token_lens), is_valid(tokens, token_lens)
        return self.conformer(tokens, mask, token_lens if alone else None)


class ConvFront(nn.Module):
    """Two residual blocks that halve time and bands, then one linear layer over channels and bands."""

    def __init__(self, config: MuqConfig):
        super().__init__()
        width = config.conv_dim
        self.conv = nn.ModuleList([ConvBlock(1, width), ConvBlock(width, width)])
        self.linear = nn.Linear(width * NUM_BANDS // FRAMES_PER_TOKEN, config.encoder_dim)

    def forward(self, mel: torch.Tensor, token_lens: torch.Tensor | None) -> torch.Tensor:
        """mel: (B, T, F), token_lens: (B,) or None: nothing is masked -> (B, N, C)."""
        if token_lens is not None:
            mel = zero_beyond(mel, token_lens * FRAMES_PER_TOKEN)
        hidden = mel.transpose(1, 2)[:, None]  # (B, 1, F, T)
        for block, scale in zip(self.conv, (2, 1), strict=True):
            hidden = block(hidden, None if token_lens is None else token_lens * scale)
        return self.linear(hidden.flatten(1, 2).transpose(1, 2))  # (B, channels * F / 4, N) -> (B, N, C)


class ConvBlock(nn.Module):
    """Two convolutions beside a shortcut of one; the first and the shortcut's have stride 2 in time and bands."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv3 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.bn3 = nn.BatchNorm2d(outputs)

    def forward(self, hidden: torch.Tensor, lens: torch.Tensor | None) -> torch.Tensor:
        """hidden: (B, in, bands, steps), lens: (B,) valid steps of the output, or None -> (B, out, half, half)."""
        inner = _zero_beyond_in_time(self.bn1(self.conv1(hidden)).relu(), lens)
        return _zero_beyond_in_time((self.bn2(self.conv2(inner)) + self.bn3(self.conv3(hidden))).relu(), lens)


class Conformer(nn.Module):
    """Conformer blocks with rotary positions and a LayerNorm after the last."""

    def __init__(self, config: MuqConfig, num_layers: int):
        super().__init__()
        width = config.encoder_dim
        self.layers = nn.ModuleList(ConformerBlock(config) for _ in range(num_layers))
        whole = num_layers == config.encoder_depth
        self.layer_norm = nn.LayerNorm(width) if whole else nn.Identity()
        self.head_width, self.base = width // config.num_attention_heads, config.rotary_embedding_base

    def forward(
        self, hidden: torch.Tensor, mask: torch.Tensor | None, lens: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        """hidden: (B, N, C), mask: (B, N) keys, lens: (B,) of the convolutions; None: all -> per block (B, N, C)."""
        rotary = rotary_tables(hidden, self.head_width, self.base)
        outputs = []
        for layer in self.layers:
            hidden = layer(hidden, rotary, mask, lens)
            outputs.append(hidden)
        return (*outputs[:-1], self.layer_norm(outputs[-1]))


class ConformerBlock(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, each with a residual, then LayerNorm."""

    def __init__(self, config: MuqConfig):
        super().__init__()
        width = config.encoder_dim
        self.ffn1_layer_norm = nn.LayerNorm(width)
        self.ffn1 = FeedForward(width, config.intermediate_size)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.self_attn = RotaryAttention(width, config.num_attention_heads)
        self.conv_module = ConvModule(width, config.conv_depthwise_kernel_size)
        self.ffn2_layer_norm = nn.LayerNorm(width)
        self.ffn2 = FeedForward(width, config.intermediate_size)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(
        self,
        hidden: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None,
        lens: torch.Tensor | None,
    ) -> torch.Tensor:
        """hidden: (B, N, C), mask: (B, N) or None, lens: (B,) or None -> (B, N, C)."""
        hidden = hidden + 0.5 * self.ffn1(self.ffn1_layer_norm(hidden))
        hidden = hidden + self.self_attn(self.self_attn_layer_norm(hidden), rotary, mask)
        hidden = hidden + self.conv_module(hidden, lens)
        hidden = hidden + 0.5 * self.ffn2(self.ffn2_layer_norm(hidden))
        return self.final_layer_norm(hidden)


class FeedForward(nn.Module):
    """Linear, SiLU, linear."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.intermediate_dense = nn.Linear(width, inner)
        self.output_dense = nn.Linear(inner, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., C) -> (..., C)."""
        return self.output_dense(F.silu(self.intermediate_dense(hidden)))


class RotaryAttention(nn.Module):
    """Self-attention in which the input itself is rotated, before the query's and key's projections."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)

    def forward(
        self, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor | None
    ) -> torch.Tensor:
        """hidden: (B, N, C), rotary: see `rotary_tables`, mask: (B, N) True = valid, or None -> (B, N, C)."""
        cos, sin = rotary
        heads = hidden.unflatten(-1, (self.num_heads, -1))  # (B, N, H, C / H)
        left, right = heads.chunk(2, dim=-1)
        rotated = (heads * cos + torch.cat([-right, left], dim=-1) * sin).flatten(2)
        query, key, value = (
            linear(inputs).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, N, C / H)
            for linear, inputs in ((self.linear_q, rotated), (self.linear_k, rotated), (self.linear_v, hidden))
        )
        keys = None if mask is None else mask[:, None, None]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=keys)
        return self.linear_out(attended.transpose(1, 2).flatten(2))


class ConvModule(nn.Module):
    """LayerNorm, gated linear unit, depthwise convolution over tokens, BatchNorm, SiLU, linear."""

    def __init__(self, width: int, kernel_size: int):
        super().__init__()
        self.layer_norm = nn.LayerNorm(width)
        self.pointwise_conv1 = nn.Conv1d(width, 2 * width, 1, bias=False)
        self.depthwise_conv = nn.Conv1d(width, width, kernel_size, padding=kernel_size // 2, groups=width, bias=False)
        self.batch_norm = nn.BatchNorm1d(width)
        self.pointwise_conv2 = nn.Conv1d(width, width, 1, bias=False)

    def forward(self, hidden: torch.Tensor, lens: torch.Tensor | None) -> torch.Tensor:
        """hidden: (B, N, C), lens: (B,) tokens that the convolution reads, or None: all -> (B, N, C)."""
        hidden = F.glu(self.pointwise_conv1(self.layer_norm(hidden).transpose(1, 2)), dim=1)  # (B, C, N)
        hidden = self.depthwise_conv(_zero_beyond_in_time(hidden, lens))
        return self.pointwise_conv2(F.silu(self.batch_norm(hidden))).transpose(1, 2)


def rotary_tables(hidden: torch.Tensor, width: int, base: float) -> tuple[torch.Tensor, torch.Tensor]:
    """hidden: (B, N, C) -> cosines and sines (N, 1, width) in its dtype; both halves have the same rates."""
    rates = base ** (-torch.arange(0, width, 2, dtype=torch.float32, device=hidden.device) / width)
    places = torch.arange(hidden.shape[1], dtype=torch.float32, device=hidden.device)
    angles = (places[:, None] * rates).repeat(1, 2)[:, None]
    return angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)


def _zero_beyond_in_time(hidden: torch.Tensor, lens: torch.Tensor | None) -> torch.Tensor:
    """hidden: (B, ..., steps), zeros beyond ``lens``; unchanged if that is None."""
    return hidden if lens is None else zero_beyond(hidden.transpose(1, -1), lens).transpose(1, -1)
