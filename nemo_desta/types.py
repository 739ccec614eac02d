"""Tensors with lengths that are passed between packages.

Letters: B clips, S samples, T frames of one encoder, N chosen layers, C encoder width, P windows of the whole batch.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

#: The rates of a clip's samples. One number: (S,) at that rate. Several, falling, for encoders that need them: (S, K),
#: column k at the k-th rate, zeros after its own samples; S and every length count at the first one.
Rates = int | tuple[int, ...]

#: Id of an audio slot in ``input_ids``: replaced by the clip's vectors, never looked up in the embedding table.
AUDIO_SLOT = -1


def first_rate(rates: Rates) -> int:
    """The rate at which lengths of clips count."""
    return rates if isinstance(rates, int) else rates[0]


class EncoderOutput(NamedTuple):
    """The output of a frozen encoder for a batch of clips.

    ``layers``: N tensors (B, T, C), one per ``layer_id``, in the order of the ids. ``lens``: (B,) int64, valid frames
    of each clip. Frames beyond ``lens`` have unspecified values and must be masked.
    """

    layers: tuple[torch.Tensor, ...]
    lens: torch.Tensor


@dataclass(frozen=True)
class FrameGrid:
    """The time positions of an encoder's frames, in samples at the encoder's sampling rate.

    Step ``i`` covers samples ``[i * hop, (i + 1) * hop)`` and owns the ``frames_per_step`` frames
    ``i * frames_per_step ...``. A Whisper step is one frame of 20 ms; a BEATs step is 160 ms and owns 8 frames, one
    per frequency band. ``overlap``: a step belongs to every window that it overlaps (BEATs); otherwise only to the
    window that holds its centre (Whisper).
    """

    sampling_rate: int
    hop: int
    frames_per_step: int = 1
    overlap: bool = False

    @property
    def frame_rate(self) -> float:
        """Frames per second, counting every frame of a step (50 for Whisper and for BEATs)."""
        return self.sampling_rate / self.hop * self.frames_per_step

    def num_frames(self, num_samples: int) -> int:
        """Frames of every step that ``num_samples`` samples begin, at least those of one step."""
        return self.frames_per_step * max(1, -(-num_samples // self.hop))


class WindowTable(NamedTuple):
    """The frames that each output window reads, packed over the batch without padding.

    ``starts``: (P,) int64, flat index into the (B * T) frames; ``counts``: (P,) int64, at least 1; ``lens``: (B,)
    int64, windows of each clip, summing to P. Windows of one clip are consecutive and may overlap.
    """

    starts: torch.Tensor
    counts: torch.Tensor
    lens: torch.Tensor
