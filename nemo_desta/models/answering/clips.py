"""Whatever a caller calls audio -> one clip: mono samples at the model's rate, its transcript if given, its name.

Paths here are the caller's own and not a manifest's: no audio root guards them. Letters: S samples.
"""

import hashlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from nemo_desta.config import check_keys
from nemo_desta.data.audio_io import AudioError, TarSlice, load_audio, to_clip

#: What a mapping around an audio may hold; ``array`` is how Hugging Face datasets call it.
KNOWN_KEYS = ("audio", "array", "sampling_rate", "text", "path", "duration")


class Clip(NamedTuple):
    """``audio``: (S,) float32 in [-1, 1] at the model's sampling rate. ``text``: a transcript, None when not given.
    ``key``: hash of the samples; equal clips sound equal."""

    audio: np.ndarray
    text: str | None
    key: str


def load_clip(item: Any, sampling_rate: int, *, name: str = "audio") -> Clip:
    """Load one audio.

    Args:
        item: a path; bytes or an open binary file with a whole audio file in it; an array or tensor of samples, (S,)
            or with a second axis of channels (the shorter one), at ``sampling_rate``; or a mapping
            ``{"audio" or "array": any of these, "sampling_rate": of an array, "text": its transcript}``.
        name: how errors call it.

    Raises:
        AudioError: not found, not readable, empty, not finite. ConfigError: an unknown key of a mapping.
        TypeError: something that is no audio.
    """
    source, text, rate = item, None, sampling_rate
    if isinstance(item, Mapping):
        check_keys(item, KNOWN_KEYS, name)
        text, rate = item.get("text"), item.get("sampling_rate") or sampling_rate
        source = next((item[key] for key in ("array", "audio", "path") if item.get(key) is not None), None)
    if isinstance(source, torch.Tensor):
        source = source.detach().float().cpu().numpy()
    if isinstance(source, bytes | bytearray | memoryview):
        source = BytesIO(source)
    if isinstance(source, np.ndarray):
        audio = to_clip(_channels_last(source, name), rate, sampling_rate, name)
    elif isinstance(source, str | Path | TarSlice) or hasattr(source, "read"):
        audio = load_audio(source, sampling_rate, name=None if isinstance(source, str | Path | TarSlice) else name)
    else:
        raise TypeError(
            f"{name} is a {type(source).__name__}; it must be a path, bytes, a file or an array of samples"
        )
    return Clip(audio, text, hashlib.sha256(audio.tobytes()).hexdigest())


def _channels_last(samples: np.ndarray, name: str) -> np.ndarray:
    """(S,), (S, channels) or (channels, S) of any number type -> (S, channels) float32 in [-1, 1]."""
    if samples.ndim not in (1, 2):
        raise AudioError("corrupt", f"{name} has shape {samples.shape}; samples are (S,) or (S, channels)")
    if np.issubdtype(samples.dtype, np.integer):
        lowest, highest = np.iinfo(samples.dtype).min, np.iinfo(samples.dtype).max
        middle = (highest + lowest + 1) / 2  # 0, or the middle of an unsigned type
        samples = (samples - middle) / (highest + 1 - middle)
    if samples.ndim == 1:
        return samples[:, None].astype(np.float32)
    return (samples.T if samples.shape[0] < samples.shape[1] else samples).astype(np.float32)
