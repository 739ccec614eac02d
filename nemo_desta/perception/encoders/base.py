"""The interface of every frozen audio encoder, its shape, and the base class that keeps it frozen.

Letters: B clips, S samples, T frames, C encoder width.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from nemo_desta.types import EncoderOutput, FrameGrid


@dataclass(frozen=True)
class EncoderShape:
    """What a projector reads of an encoder, known from the encoder's config: sizes and frame counts, no weights.

    The attributes are those of `AudioEncoder`, so a projector is built from shapes as well as from encoders.

    >>> grid = FrameGrid(sampling_rate=16_000, hop=320)
    >>> EncoderShape(hidden_size=768, layer_ids=(6, 12), num_layers=12, frame_grid=grid).num_frames(16_000)
    50

    ``frames_of``: samples of a clip -> its frames, where it is not the grid's rule (`FrameGrid.num_frames`).
    """

    hidden_size: int
    layer_ids: tuple[int, ...]
    num_layers: int
    frame_grid: FrameGrid
    frames_of: Callable[[int], int] | None = None

    @property
    def sampling_rate(self) -> int:
        """Samples per second that the encoder expects."""
        return self.frame_grid.sampling_rate

    @property
    def frame_rate(self) -> float:
        """Frames per second, counting every frame of a step."""
        return self.frame_grid.frame_rate

    def num_frames(self, num_samples: int) -> int:
        """Frames of a clip of ``num_samples`` samples at ``sampling_rate``."""
        return (self.frames_of or self.frame_grid.num_frames)(num_samples)


@runtime_checkable
class AudioEncoder(Protocol):
    """A frozen model from waveforms to frames, at selected layers.

    ``layer_ids`` are 1-based block outputs: id k is what block k returns. ``num_layers`` counts the blocks of the
    checkpoint, used or not. ``frame_rate`` counts every frame of a step (`FrameGrid.frame_rate`).
    """

    sampling_rate: int
    frame_rate: float
    hidden_size: int
    num_layers: int
    layer_ids: tuple[int, ...]
    frame_grid: FrameGrid

    def num_frames(self, num_samples: int) -> int:
        """Frames of a clip of ``num_samples`` samples at ``sampling_rate``; at least one step."""
        ...

    def __call__(self, audio: torch.Tensor, audio_lens: torch.Tensor) -> EncoderOutput:
        """audio: (B, S) float32 in [-1, 1] at ``sampling_rate``; audio_lens: (B,) int64 samples of each clip."""
        ...


class FrozenEncoder(nn.Module):
    """Base of encoders around one torch module: no gradients, always in eval mode, in the dtype of its own weights.

    Subclasses implement ``encode``, which runs without gradients and without autocast. ``depends_on_batch``: a clip's
    frames depend on the other clips of its batch.
    """

    depends_on_batch = False

    def __init__(self, model: nn.Module, shape: EncoderShape):
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self._shape = shape
        self.hidden_size, self.num_layers = shape.hidden_size, shape.num_layers
        self.layer_ids, self.frame_grid = shape.layer_ids, shape.frame_grid
        self.sampling_rate, self.frame_rate = shape.sampling_rate, shape.frame_rate
        super().train(False)

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the weights and of the returned layers."""
        return next(self.model.parameters()).dtype

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Stay in eval mode, whatever ``mode`` is."""
        return super().train(False)

    def num_frames(self, num_samples: int) -> int:
        """Frames of a clip of ``num_samples`` samples."""
        return self._shape.num_frames(num_samples)

    def forward(self, audio: torch.Tensor, audio_lens: torch.Tensor) -> EncoderOutput:
        """Encode a batch. audio: (B, S) in [-1, 1]; audio_lens: (B,) -> layers of (B, T, C) in `dtype`, lens (B,).

        Raises:
            ValueError: a length in ``audio_lens`` is larger than ``audio``.
        """
        lengths = audio_lens.tolist()
        if max(lengths) > audio.shape[1]:
            worst = max(range(len(lengths)), key=lengths.__getitem__)
            raise ValueError(
                f"clip {worst}: audio_lens says {lengths[worst]} samples but audio holds {audio.shape[1]}; "
                "audio is (B, S) and padded to the longest clip"
            )
        with torch.no_grad(), torch.autocast(audio.device.type, enabled=False):
            return self.encode(audio.float(), lengths)

    def encode(self, audio: torch.Tensor, lengths: list[int]) -> EncoderOutput:
        """Encode a batch, called by `forward`; ``lengths``: samples of each clip, on the host."""
        raise NotImplementedError


def resolve_layer_ids(layer_ids: Iterable[int] | None, num_layers: int) -> tuple[int, ...]:
    """Check selected blocks; None is every block.

    Raises:
        ValueError: an id outside 1..num_layers, an id twice, or none at all.
    """
    if layer_ids is None:
        return tuple(range(1, num_layers + 1))
    ids = tuple(int(i) for i in layer_ids)
    if not ids or len(set(ids)) != len(ids) or not all(1 <= i <= num_layers for i in ids):
        raise ValueError(
            f"layer_ids {list(ids)}: each must be one block's 1-based number, 1 to {num_layers}, and none may repeat"
        )
    return ids
