"""ALARM-P's fusion: the main stream is kept whole, and each other encoder adds a few latent vectors before it.

``start, latents of the second encoder, latents of the third, ..., end, main stream``. The number of latents does not
depend on the clip's length. They attend to the whole clip in a Perceiver: pre-norm cross-attention to the frames, then
blocks of self-attention.

Letters: B clips, T frames, C frame width, Q latents, H latent width, W vectors out, D LLM width.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from nemo_desta.config import check_keys
from nemo_desta.perception.masks import is_valid
from nemo_desta.perception.projector.bert import Attention
from nemo_desta.perception.projector.fusion import Streams


class PerceiverFusion(nn.Module):
    """Latent prefixes and the main stream. Every stream is masked by its own lengths, as in the original.

    The released class returns a pair where its caller expects a tensor, so ALARM-P as released stops with a TypeError.
    """

    def __init__(
        self,
        widths: dict[str, int],
        output_size: int,
        *,
        perceiver: Mapping[str, Any] | None = None,
        perceivers: Mapping[str, Mapping[str, Any]] | None = None,
        original_masks: bool = False,
    ):
        """Build one Perceiver per encoder; the first encoder is the main one and has none.

        Args:
            widths: of the streams by encoder name; the main one has the LLM's width D.
            output_size: D.
            perceiver: knobs of every `Perceiver`.
            perceivers: knobs by encoder name, which override those of ``perceiver``.
            original_masks: has no effect; the masks are the original's already.

        Raises:
            ConfigError: an unknown knob, or ``perceivers`` name no encoder beside the main one.
            ValueError: a main stream of another width than D.
        """
        super().__init__()
        self.main, *others = widths
        if widths[self.main] != output_size:
            raise ValueError(
                f"main stream '{self.main}' must have the LLM's width {output_size}, not {widths[self.main]}"
            )
        perceivers = perceivers or {}
        check_keys(perceivers, others, "model.perception.projector.fusion.perceivers")
        knobs = {name: {**(perceiver or {}), **perceivers.get(name, {})} for name in others}
        for name in others:
            known = set(inspect.signature(Perceiver).parameters) - {"width"}
            check_keys(knobs[name], known, f"model.perception.projector.fusion.perceivers.{name}")
        self.perceivers = nn.ModuleDict({name: Perceiver(widths[name], **knobs[name]) for name in others})
        self.outputs = nn.ModuleDict(
            {n: nn.Linear(p.latents.shape[1], output_size) for n, p in self.perceivers.items()}
        )
        self.start = nn.Parameter(torch.randn(output_size))
        self.end = nn.Parameter(torch.randn(output_size))

    def forward(self, streams: Streams) -> tuple[torch.Tensor, torch.Tensor]:
        """Streams -> (B, W, D), lens (B,)."""
        main, lens = streams[self.main]
        parts = [self.start.expand(len(main), 1, -1)]
        for name, perceiver in self.perceivers.items():
            frames, own_lens = streams[name]
            parts.append(self.outputs[name](perceiver(frames, is_valid(frames, own_lens))))
        parts += [self.end.expand(len(main), 1, -1), main]
        return torch.cat(parts, dim=1), lens + self.num_latents + 2

    @property
    def num_latents(self) -> int:
        """Latent vectors of all encoders together."""
        return sum(len(perceiver.latents) for perceiver in self.perceivers.values())

    def num_vectors(self, frames: dict[str, int]) -> int:
        """Vectors of a clip whose streams have these numbers of frames."""
        return frames[self.main] + self.num_latents + 2


class Perceiver(nn.Module):
    """Latents that attend to frames once or several times, with self-attention in between."""

    def __init__(
        self,
        width: int,
        *,
        num_latents: int = 20,
        latent_size: int = 768,
        num_heads: int = 4,
        num_blocks: int = 3,
        layers_per_block: int = 6,
        num_reads: int = 1,
        share_reads: bool = True,
        share_blocks: bool = True,
        read_widening: int = 1,
        think_widening: int = 1,
    ):
        """The defaults are ALARM-P's.

        Args:
            width: C.
            num_latents: Q.
            latent_size: H.
            num_blocks: self-attention blocks of ``layers_per_block`` layers each.
            num_reads: number of blocks, counted from the first, that begin with a cross-attention.
            share_reads, share_blocks: True: one set of weights for all; False: a second set after the first.
            read_widening, think_widening: width of the MLP after cross- and self-attention, in units of H.
        """
        super().__init__()
        self.num_blocks, self.num_reads = num_blocks, num_reads
        self.latents = nn.Parameter(0.02 * torch.randn(num_latents, latent_size))

        def read() -> nn.Module:
            return PreNormLayer(latent_size, width, num_heads, read_widening)

        def block() -> nn.Module:
            return nn.ModuleList(
                PreNormLayer(latent_size, None, num_heads, think_widening) for _ in range(layers_per_block)
            )

        self.read_first, self.think_first = read(), block()
        self.read_later = read() if num_reads > 1 and not share_reads else None
        self.think_later = block() if num_blocks > 1 and not share_blocks else None

    def forward(self, frames: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """frames (B, T, C), valid (B, T) -> (B, Q, H)."""
        state = self.latents.expand(len(frames), -1, -1)
        for i in range(self.num_blocks):
            if i < self.num_reads:
                read = self.read_later if i and self.read_later is not None else self.read_first
                state = read(state, frames, valid)
            for layer in self.think_later if i and self.think_later is not None else self.think_first:
                state = layer(state)
        return state


class PreNormLayer(Attention):
    """Norm, attention, residual, then norm, two-layer MLP, residual."""

    def __init__(self, width: int, context_width: int | None, num_heads: int, widening: int):
        """``context_width``: channels of the frames, None for self-attention."""
        super().__init__(width, context_width or width, num_heads)
        self.norm = nn.LayerNorm(width)
        self.context_norm = nn.LayerNorm(context_width) if context_width else None
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, widening * width), nn.GELU(), nn.Linear(widening * width, width)
        )

    def forward(
        self, state: torch.Tensor, frames: torch.Tensor | None = None, valid: torch.Tensor | None = None
    ) -> torch.Tensor:
        """state (B, Q, H) reads frames (B, T, C) where valid (B, T), or itself -> (B, Q, H)."""
        queries = self.norm(state)
        state = state + self.attend(queries, queries if frames is None else self.context_norm(frames), valid)
        return state + self.mlp(state)
