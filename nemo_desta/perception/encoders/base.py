"""What every frozen audio encoder looks like from outside, and the base class that keeps one frozen.

Letters: B clips, S samples, T frames, C encoder width.
"""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from nemo_desta.config import nearest
from nemo_desta.errors import ConfigError
from nemo_desta.types import EncoderOutput, FrameGrid


@runtime_checkable
class AudioEncoder(Protocol):
    """A frozen model that turns waveforms into frames at a few chosen depths.

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
    """Base of encoders around one torch module: no gradients, eval for good, and the dtype of its own weights.

    Subclasses implement ``num_frames`` and ``encode``; ``encode`` runs without gradients and without autocast.
    """

    def __init__(
        self, model: nn.Module, *, frame_grid: FrameGrid, hidden_size: int, num_layers: int, layer_ids: tuple[int, ...]
    ):
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.frame_grid = frame_grid
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.layer_ids = layer_ids
        super().train(False)

    @property
    def sampling_rate(self) -> int:
        """Samples per second that the encoder expects."""
        return self.frame_grid.sampling_rate

    @property
    def frame_rate(self) -> float:
        """Frames per second, counting every frame of a step."""
        return self.frame_grid.frame_rate

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the weights, hence of the layers returned."""
        return next(self.model.parameters()).dtype

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Stay in eval mode whatever the training loop says."""
        return super().train(False)

    def num_frames(self, num_samples: int) -> int:
        """Frames of a clip of ``num_samples`` samples."""
        raise NotImplementedError

    def forward(self, audio: torch.Tensor, audio_lens: torch.Tensor) -> EncoderOutput:
        """Encode a batch. audio: (B, S) in [-1, 1]; audio_lens: (B,) -> layers of (B, T, C) in `dtype`, lens (B,).

        Raises:
            ValueError: a clip is said to be longer than ``audio`` is.
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
        """What `forward` does inside its guards; ``lengths``: samples of each clip, on the host."""
        raise NotImplementedError


def resolve_layer_ids(layer_ids: Iterable[int] | None, num_layers: int) -> tuple[int, ...]:
    """Check chosen blocks; None is every block.

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


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    """A dtype from itself or its name ("bfloat16"); None is float32.

    Raises:
        ConfigError: not the name of a floating type.
    """
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype or torch.float32
    known = ("float32", "bfloat16", "float16")
    if dtype not in known:
        raise ConfigError(f"unknown dtype '{dtype}'.{nearest(dtype, known)}")
    return getattr(torch, dtype)
