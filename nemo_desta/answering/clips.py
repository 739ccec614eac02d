"""Audio in any form -> one clip: mono samples at the model's rate, its transcript if given, its hash.

Paths are the caller's own and not a manifest's, so they are not checked against an audio root. Letters: S samples.
"""

import numbers
import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from nemo_desta.config import check_keys
from nemo_desta.data.audio_decoding import audio_guard, check_rate, duration_fault
from nemo_desta.data.audio_io import AudioError, TarSlice, load_audio, to_clip
from nemo_desta.data.encoded import from_base64
from nemo_desta.errors import ConfigError
from nemo_desta.perception.feature_cache import clip_key
from nemo_desta.types import Rates, first_rate

#: Keys of a mapping that hold the sound: of a row's audio entry, or of an audio of Hugging Face datasets.
SOUND_KEYS = ("audio", "array", "bytes")
#: All keys of a mapping. ``path``: the file of the sound, or only its name if one of `SOUND_KEYS` is given.
KNOWN_KEYS = (*SOUND_KEYS, "path", "sampling_rate", "text", "duration")


class Clip(NamedTuple):
    """``audio``: (S,) float32 in [-1, 1] at the model's sampling rate, (S, K) for several. ``text``: a transcript or
    None. ``key``: hash of the samples."""

    audio: np.ndarray
    text: str | None
    key: str


def load_clip(item: Any, sampling_rate: Rates, *, name: str = "audio") -> Clip:
    """Load one audio; a `Clip` is returned as it is.

    Args:
        item: a path; bytes, an open binary file or a data URI with a whole audio file in it; an array, tensor or list
            of samples, (S,) or with a second axis of channels (the shorter one), at the (first) ``sampling_rate``; an
            object with ``get_all_samples()`` (torchcodec's ``AudioDecoder``, as datasets gives it); or a mapping
            ``{"audio", "array" or "bytes": any of these, "sampling_rate": of an array, "text": its transcript,
            "duration": its seconds, checked against the audio}``.
        name: its name in errors.

    Raises:
        AudioError: not found, not readable, empty, not finite, too loud, or an impossible rate. ConfigError: an
            unknown key of a mapping, or two sounds in it. TypeError: not an audio.
    """
    if isinstance(item, Clip):
        return item
    source, given = item, dict.fromkeys(("text", "duration", "sampling_rate"))
    while isinstance(source, Mapping):
        check_keys(source, KNOWN_KEYS, name)
        given = {key: source.get(key) if value is None else value for key, value in given.items()}
        found = [key for key in SOUND_KEYS if source.get(key) is not None]
        if len(found) > 1:
            raise ConfigError(f"{name} has both '{found[0]}' and '{found[1]}'; give one of them")
        source = source[found[0]] if found else source.get("path")
    text, duration, rate = given["text"], given["duration"], given["sampling_rate"]
    if not isinstance(text, str | None):
        raise TypeError(f"{name}: 'text' must be a transcript, found {text!r:.80}")
    if duration is not None and not (isinstance(duration, numbers.Real) and duration >= 0):
        raise TypeError(f"{name}: 'duration' must be seconds, found {duration!r:.80}")
    if rate is not None:
        check_rate(rate, name)
    audio = _samples(source, first_rate(sampling_rate) if rate is None else rate, sampling_rate, name, duration)
    return Clip(audio, text, clip_key(audio))


def _samples(source: Any, rate: float, sampling_rate: Rates, name: str, duration: float | None) -> np.ndarray:
    """As `to_clip`. ``rate``: of bare samples."""
    if isinstance(source, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source):
        raise AudioError(
            "not_found", f"{name} is the address '{source:.200}'; nothing is fetched: download it, and give its path"
        )
    if isinstance(source, str) and source[:5].lower() == "data:":
        source = from_base64(source, name)
    if isinstance(source, bytes | bytearray | memoryview):
        source = BytesIO(source)
    if isinstance(source, str | Path | TarSlice):
        return load_audio(source, sampling_rate, duration=duration)
    if hasattr(source, "read"):
        return load_audio(source, sampling_rate, name=name, duration=duration)
    if hasattr(source, "get_all_samples"):
        with audio_guard(name):
            decoded = source.get_all_samples()
        samples, rate = decoded.data.T.numpy(), decoded.sample_rate  # (channels, S) -> (S, channels)
    else:
        samples = _array(source, name)
        if samples.ndim not in (1, 2):
            raise AudioError("corrupt", f"{name} has shape {samples.shape}; samples are (S,) or (S, channels)")
        if samples.ndim == 1:
            samples = samples[:, None]
        elif samples.shape[0] < samples.shape[1]:
            samples = samples.T
    if fault := duration_fault(len(samples) / rate, duration):
        raise AudioError("wrong_duration", f"{name} is {fault}")
    return to_clip(samples, rate, sampling_rate, name)


def _array(source: Any, name: str) -> np.ndarray:
    """An array, tensor or list of numbers as an array; its values are not checked."""
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu()
        return source.float().numpy() if source.dtype == torch.bfloat16 else source.numpy()
    if isinstance(source, list | tuple):
        try:
            source = np.asarray(source)
        except ValueError as error:
            raise AudioError("corrupt", f"{name} is a list of lists of different length ({error})") from error
        if source.dtype.kind not in "iuf":
            raise TypeError(f"{name} is a list of other things than numbers; a list must hold samples")
    if not isinstance(source, np.ndarray):
        raise TypeError(
            f"{name} is a {type(source).__name__}; it must be a path, bytes, a file or an array of samples"
        )
    return source
