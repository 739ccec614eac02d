"""ALARM's fusions of several streams: sum and cross-attention (`perceiver` has the third).

Each reads the adapters' streams by encoder name, the main one first, and returns vectors of the LLM's width. Masks
come from each stream's own lengths; with ``original_masks`` all come from the main stream's, as in ALARM's release.

Letters: B clips, T frames of one stream, W vectors out, H fusion width, D LLM width.
"""

import torch
import torch.nn.functional as F
from torch import nn

from nemo_desta.perception.masks import is_valid, zero_beyond

Streams = dict[str, tuple[torch.Tensor, torch.Tensor]]  # name -> frames (B, T, width), lens (B,)


class SumFusion(nn.Module):
    """Adds the streams; a shorter stream counts as zeros beyond its end. Also used for a single encoder."""

    def __init__(self, widths: dict[str, int], output_size: int, *, original_masks: bool = False):
        super().__init__()
        if any(width != output_size for width in widths.values()):
            raise ValueError(f"streams to add must all have the LLM's width {output_size}, found {widths}")
        self.original_masks = original_masks

    def forward(self, streams: Streams) -> tuple[torch.Tensor, torch.Tensor]:
        """Streams -> (B, W, D), lens (B,): those of the longest stream."""
        longest = max(frames.shape[1] for frames, _ in streams.values())
        total = 0
        for frames, lens in streams.values():
            frames = frames if self.original_masks else zero_beyond(frames, lens)
            total = total + _pad_to(frames, longest)
        return total, _max_lens(streams)

    def num_vectors(self, frames: dict[str, int]) -> int:
        """Vectors of a clip whose streams have these numbers of frames."""
        return max(frames.values())


class CrossAttentionFusion(nn.Module):
    """ALARM-CA: the main stream attends to the others in turn, by pre-norm decoder layers without positions."""

    def __init__(
        self,
        widths: dict[str, int],
        output_size: int,
        *,
        hidden_size: int = 1024,
        num_heads: int = 16,
        feed_forward_size: int = 4096,
        num_layers: int | dict[str, int] = 1,
        dropout: float = 0.1,
        skip: bool = False,
        original_masks: bool = False,
    ):
        """Build the layers.

        Args:
            widths: of the streams by encoder name; the first is the main stream.
            output_size: D.
            hidden_size: H.
            num_layers: decoder layers for each of the others, one number or by name.
            skip: add the main stream, projected to width H, before the last Linear.
        """
        super().__init__()
        self.main, *others = widths
        self.skip, self.original_masks = skip, original_masks
        depth = num_layers if isinstance(num_layers, dict) else dict.fromkeys(others, num_layers)
        if set(depth) != set(others):
            raise ValueError(f"num_layers names {sorted(depth)}, but the encoders beside '{self.main}' are {others}")
        self.inputs = nn.ModuleDict({name: nn.Linear(width, hidden_size) for name, width in widths.items()})
        self.readers = nn.ModuleDict(
            {
                name: nn.ModuleList(
                    nn.TransformerDecoderLayer(
                        hidden_size, num_heads, feed_forward_size, dropout, F.gelu, batch_first=True, norm_first=True
                    )
                    for _ in range(depth[name])
                )
                for name in others
            }
        )
        self.output = nn.Linear(hidden_size, output_size)

    def forward(self, streams: Streams) -> tuple[torch.Tensor, torch.Tensor]:
        """Streams -> (B, W, D), lens (B,): those of the main stream (of the longest with ``original_masks``)."""
        frames, lens = streams[self.main]
        out_lens = lens
        if self.original_masks:
            out_lens, longest = _max_lens(streams), max(frames.shape[1] for frames, _ in streams.values())
            streams = {name: (_pad_to(frames, longest), lens) for name, (frames, _) in streams.items()}
            frames = streams[self.main][0]
        start, ignore = self.inputs[self.main](frames), ~is_valid(frames, lens)
        state = start
        for name, layers in self.readers.items():
            other, other_lens = streams[name]
            memory, memory_ignore = self.inputs[name](other), ~is_valid(other, other_lens)
            for layer in layers:
                state = layer(state, memory, tgt_key_padding_mask=ignore, memory_key_padding_mask=memory_ignore)
        return self.output(state + start if self.skip else state), out_lens

    def num_vectors(self, frames: dict[str, int]) -> int:
        """Vectors of a clip whose streams have these numbers of frames."""
        return max(frames.values()) if self.original_masks else frames[self.main]


def _pad_to(frames: torch.Tensor, length: int) -> torch.Tensor:
    return F.pad(frames, (0, 0, 0, length - frames.shape[1]))


def _max_lens(streams: Streams) -> torch.Tensor:
    return torch.stack([lens for _, lens in streams.values()]).amax(0)
