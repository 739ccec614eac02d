"""SALMONN's connector: the encoders' channels are concatenated per frame, and a small Q-Former reads short windows.

Each encoder's stream passes a LayerNorm and is zero-padded to the longest stream; the channels are concatenated. In
each window of ``window_secs``, ``num_queries`` learned queries attend to the frames in BERT-style layers, and one
Linear maps them to the LLM's width. The encoders are paired by frame index, so their frame rates must agree (Whisper
and BEATs: 50 per second).

Letters: N encoder layers, B clips, T frames, C width of one encoder, E of all together, H Q-Former width, P windows of
the batch, K frames per window, Q queries, D LLM width.
"""

import torch
import torch.nn.functional as F
from torch import nn

from nemo_desta.ops.windows import clip_and_window, window_index
from nemo_desta.perception.masks import zero_beyond
from nemo_desta.perception.projector.base import Encoders, Projector, pad_packed
from nemo_desta.perception.projector.bert import NORM_EPS, QueryDecoderLayer, default_heads
from nemo_desta.types import EncoderOutput, WindowTable


class WindowQFormerProjector(Projector):
    """``num_queries`` vectors for each window, in the order of time."""

    def __init__(
        self,
        encoders: Encoders,
        output_size: int,
        *,
        window_secs: float | None = 1 / 3,
        stride_secs: float | None = None,
        num_queries: int = 1,
        num_layers: int = 2,
        hidden_size: int = 768,
        num_heads: int | None = None,
        feed_forward_size: int = 3072,
        dropout: float = 0.1,
        drop_last: bool = False,
        markers: bool = False,
        output_norm: bool = False,
        output_rms: float | None = None,
    ):
        """The defaults are SALMONN's: 17 frames, one query, BERT-base width. See `Projector` for the shared arguments.

        Args:
            window_secs: length of a window, rounded to whole frames; None reads each clip as one window.
            stride_secs: from one window to the next; the window's length if None.
            num_queries: Q.
            hidden_size: H.
            num_heads: H / 64 if None.
            drop_last: True is the original: frames after the last full window are dropped. By default a shorter,
                masked last window reads them.

        Raises:
            ValueError: encoders of different frame rates, or a window or stride shorter than a frame or with a gap.
        """
        super().__init__(encoders, output_size, markers=markers, output_norm=output_norm, output_rms=output_rms)
        rates = {name: encoder.frame_grid.frame_rate for name, encoder in encoders.items()}
        rate = next(iter(rates.values()))
        if any(other != rate for other in rates.values()):
            raise ValueError(f"frames are paired by index, but the encoders' frame rates differ: {rates} per second")
        self.window = None if window_secs is None else round(rate * window_secs)
        self.stride = self.window if stride_secs is None else round(rate * stride_secs)
        if self.window is not None and not 1 <= self.stride <= self.window:
            raise ValueError(
                f"windows of {self.window} frames every {self.stride} frames: both must be at least 1, and the stride "
                "no longer than the window, or frames between windows would be lost"
            )
        self.num_queries, self.drop_last = num_queries, drop_last
        self.layer_logits = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(len(e.layer_ids))) for name, e in encoders.items() if len(e.layer_ids) > 1}
        )
        self.norms = nn.ModuleDict({name: nn.LayerNorm(encoder.hidden_size) for name, encoder in encoders.items()})
        self.queries = nn.Parameter(0.02 * torch.randn(num_queries, hidden_size))
        self.query_norm = nn.LayerNorm(hidden_size, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        context = sum(encoder.hidden_size for encoder in encoders.values())
        heads = num_heads or default_heads(hidden_size)
        self.layers = nn.ModuleList(
            QueryDecoderLayer(hidden_size, heads, feed_forward_size, dropout, context) for _ in range(num_layers)
        )
        self.output = nn.Linear(hidden_size, output_size)

    def project(
        self, features: dict[str, EncoderOutput], audio_lens: torch.Tensor, sampling_rate: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Projector.project`."""
        frames, lens = self._side_by_side(features)
        windows = self._windows(lens, frames.shape[1])
        index, valid = window_index(windows, int(windows.counts.max()))
        context = frames.flatten(0, 1)[index]  # (B, T, E) -> (P, K, E)
        state = self.dropout(self.query_norm(self.queries)).expand(len(context), -1, -1)
        for layer in self.layers:
            state = layer(state, context, valid)
        return pad_packed(self.output(state), windows.lens).flatten(1, 2), windows.lens * self.num_queries

    def num_vectors(self, num_samples: int, sampling_rate: int) -> int:
        """See `Projector.num_vectors`."""
        frames = max(self.num_frames(name, num_samples, sampling_rate) for name in self.norms)
        return int(self._num_windows(torch.tensor(frames))) * self.num_queries

    def _side_by_side(self, features: dict[str, EncoderOutput]) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, E) and the length of each clip's longest stream (B,)."""
        lens = torch.stack([features[name].lens for name in self.norms]).amax(0)
        longest = int(lens.max())
        streams = []
        for name, norm in self.norms.items():
            layers, own_lens = features[name]
            layers = [zero_beyond(layer.to(norm.weight.dtype), own_lens) for layer in layers]
            if name in self.layer_logits:
                weights = self.layer_logits[name].softmax(0)
                mixed = sum(weight * layer for weight, layer in zip(weights, layers, strict=True))
            else:
                mixed = layers[0]
            stream = zero_beyond(norm(mixed), own_lens)[:, :longest]
            streams.append(F.pad(stream, (0, 0, 0, longest - stream.shape[1])))
        return torch.cat(streams, dim=-1), lens

    def _num_windows(self, lens: torch.Tensor) -> torch.Tensor:
        if self.window is None:
            return torch.ones_like(lens)
        further = (lens - self.window).clamp(min=0)  # frames after the first window
        return 1 + (further // self.stride if self.drop_last else -(-further // self.stride))

    def _windows(self, lens: torch.Tensor, max_frames: int) -> WindowTable:
        per_clip = self._num_windows(lens)
        clip, window = clip_and_window(per_clip)
        start = window * (self.stride or 0)
        counts = lens[clip] - start if self.window is None else (lens[clip] - start).clamp(max=self.window)
        return WindowTable(clip * max_frames + start, counts, per_clip)
