"""DeSTA2's and DeSTA2.5's connector: a fixed number of learned queries per stretch of audio.

Per encoder, each tapped layer is read by its own queries through one shared stack of decoder layers; every query
position weighs the layers by a softmax of its own; then LayerNorm and one Linear to the LLM's width. With several
encoders their vectors stand side by side before that Linear. The originals give 64 vectors to a clip and cut it at
30 s; here each ``chunk_secs`` of a clip get them, so nothing is cut.

Letters: N encoder layers, B clips, T frames, C encoder width, P chunks of the batch, K frames of the longest chunk, Q
queries, D LLM width.
"""

from fractions import Fraction

import torch
from torch import nn

from nemo_desta.ops.windows import (
    clip_and_window,
    exact_rate,
    max_window_frames,
    num_windows,
    window_index,
    window_table,
)
from nemo_desta.perception.projector.base import Encoders, Projector, pad_packed
from nemo_desta.perception.projector.bert import QueryDecoderLayer, default_heads
from nemo_desta.types import EncoderOutput, FrameGrid, WindowTable


class QFormerProjector(Projector):
    """``num_queries`` vectors for every ``chunk_secs`` of audio begun."""

    def __init__(
        self,
        encoders: Encoders,
        output_size: int,
        *,
        num_queries: int = 64,
        num_layers: int = 6,
        num_heads: int | None = None,
        feed_forward_size: int = 3072,
        dropout: float = 0.1,
        chunk_secs: int | float | str | Fraction = 30,
        mask_padding: bool = True,
        markers: bool = False,
        output_norm: bool = False,
        output_rms: float | None = None,
    ):
        """The defaults are DeSTA2.5's; DeSTA2 has 2 layers. See `Projector` for the arguments that all share.

        Args:
            num_queries: Q.
            num_layers: decoder layers, as wide as the encoder.
            num_heads: of each attention; C / 64 if None.
            feed_forward_size: 3072 in both papers, at any C.
            chunk_secs: seconds of audio that Q vectors stand for; a number, or a fraction as "25/3".
            mask_padding: False is the originals: queries also read the silence that fills an encoder's window. It
                needs an encoder that returns whole windows of ``chunk_secs``.
        """
        super().__init__(encoders, output_size, markers=markers, output_norm=output_norm, output_rms=output_rms)
        self.num_queries = num_queries
        self.chunks_per_second = 1 / exact_rate(chunk_secs)
        self.mask_padding = mask_padding
        self.branches = nn.ModuleDict(
            {
                name: QFormer(
                    len(encoder.layer_ids),
                    encoder.hidden_size,
                    num_queries,
                    num_layers,
                    num_heads or default_heads(encoder.hidden_size),
                    feed_forward_size,
                    dropout,
                )
                for name, encoder in encoders.items()
            }
        )
        self.output = nn.Linear(sum(encoder.hidden_size for encoder in encoders.values()), output_size)

    def project(
        self, features: dict[str, EncoderOutput], audio_lens: torch.Tensor, sampling_rate: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Projector.project`."""
        chunks = num_windows(audio_lens, sampling_rate, self.chunks_per_second)
        read = []
        for name, branch in self.branches.items():
            layers, valid = self._chunked(name, features[name], chunks)
            read.append(branch(layers, valid))  # (P, Q, C)
        packed = self.output(torch.cat(read, dim=-1))  # (P, Q, D)
        return pad_packed(packed, chunks).flatten(1, 2), chunks * self.num_queries

    def num_vectors(self, num_samples: int, sampling_rate: int) -> int:
        """See `Projector.num_vectors`."""
        return num_windows(num_samples, sampling_rate, self.chunks_per_second) * self.num_queries

    def _chunked(
        self, name: str, output: EncoderOutput, chunks: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """An encoder's layers cut into chunks: N tensors (P, K, C), and which frames are real (P, K), None for all."""
        grid = self._encoders[name].frame_grid
        max_frames = output.layers[0].shape[1]
        if self.mask_padding:
            table = window_table(output.lens, chunks, max_frames, grid, self.chunks_per_second)
            index, valid = window_index(table, int(table.counts.max()))
        else:
            table = _whole_chunks(name, chunks, max_frames, max_window_frames(grid, self.chunks_per_second), grid)
            index, valid = window_index(table, int(table.counts[0]))[0], None
        dtype = self.output.weight.dtype
        return [layer.flatten(0, 1)[index].to(dtype) for layer in output.layers], valid


class QFormer(nn.Module):
    """One encoder's reader: per-layer queries, shared decoder layers, per-query mix of the layers, norm."""

    def __init__(
        self,
        num_taps: int,
        width: int,
        num_queries: int,
        num_layers: int,
        num_heads: int,
        feed_forward_size: int,
        dropout: float,
    ):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_taps, num_queries, width))
        self.layer_logits = nn.Parameter(torch.zeros(num_queries, num_taps))
        self.layers = nn.ModuleList(
            [QueryDecoderLayer(width, num_heads, feed_forward_size, dropout) for _ in range(num_layers)]
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, taps: list[torch.Tensor], valid: torch.Tensor | None) -> torch.Tensor:
        """N tensors (P, K, C), valid (P, K) or None for all -> (P, Q, C)."""
        return self.norm(self.mix(taps, valid))

    def mix(self, taps: list[torch.Tensor], valid: torch.Tensor | None) -> torch.Tensor:
        """`forward` before the norm."""
        weights = self.layer_logits.softmax(dim=-1)
        mixed = 0
        for n, frames in enumerate(taps):
            mixed = mixed + weights[:, n, None] * self.read(n, frames, valid)
        return mixed

    def read(self, tap: int, frames: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """The queries of one tap attend to its frames (P, K, C) -> (P, Q, C)."""
        state = self.queries[tap].expand(len(frames), -1, -1)
        for layer in self.layers:
            state = layer(state, frames, valid)
        return state


def _whole_chunks(name: str, chunks: torch.Tensor, max_frames: int, width: int, grid: FrameGrid) -> WindowTable:
    """Chunks of ``width`` frames each, padding included."""
    longest = int(chunks.max())
    if grid.overlap or longest * width > max_frames:
        raise ValueError(
            f"mask_padding=False reads whole chunks of {width} frames, {longest * width} for the longest clip, but "
            f"encoder '{name}' returns {max_frames} (overlapping steps: {grid.overlap}); use mask_padding=True"
        )
    clip, chunk = clip_and_window(chunks)
    return WindowTable(clip * max_frames + chunk * width, torch.full_like(clip, width), chunks)
