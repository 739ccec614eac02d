"""Random rows of a stream, and their clips as data URIs."""

import base64
import io
import random
from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import soundfile
import soxr

from nemo_desta.data.audio_io import AudioError, AudioRoots

T = TypeVar("T")

#: Longer clips are cut to this many seconds.
MAX_SECONDS = 15.0
#: Files up to this size that every browser plays are embedded as they are; other files are encoded again.
_MAX_BYTES = 120_000
_PLAYED_EVERYWHERE = {("WAV", "PCM_16"): "audio/wav", ("FLAC", "PCM_16"): "audio/flac"}
_MP3_RATES = (16_000, 22_050, 24_000, 32_000, 44_100, 48_000)


class Reservoir(Generic[T]):
    """A uniform random sample of at most ``size`` items of a stream of unknown length. The seed decides."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.num_seen = 0
        self._kept: list[tuple[int, T]] = []
        self._random = random.Random(seed)

    def add(self, item: T) -> None:
        self.num_seen += 1
        if len(self._kept) < self.size:
            self._kept.append((self.num_seen, item))
        elif self.size and (position := self._random.randrange(self.num_seen)) < self.size:
            self._kept[position] = (self.num_seen, item)

    @property
    def items(self) -> list[T]:
        """The sample, in the stream's order."""
        return [item for _, item in sorted(self._kept, key=lambda pair: pair[0])]


class Sound(NamedTuple):
    """A clip to play (``uri``), or why it cannot be played (``problem``). ``note``: its duration and cut."""

    name: str
    uri: str | None = None
    note: str = ""
    problem: str | None = None


def load_sound(
    entry: Mapping[str, Any], roots: AudioRoots | None, *, dataset: str | None = None, max_seconds: float = MAX_SECONDS
) -> Sound:
    """The clip of a row's audio entry. An unreadable file gives a `Sound` with its problem, never an error."""
    name = entry["audio"]
    if roots is None:
        return Sound(name, problem="no audio root was given")
    try:
        path = roots.resolve(name, dataset=dataset)
        with soundfile.SoundFile(path) as file:
            if not file.frames:
                return Sound(name, problem="the file holds no samples")
            seconds = file.frames / file.samplerate
            mime = _PLAYED_EVERYWHERE.get((file.format, file.subtype))
            if mime and seconds <= max_seconds and path.stat().st_size <= _MAX_BYTES:
                return Sound(name, _uri(mime, path.read_bytes()), f"{seconds:.1f} s")
            samples = file.read(int(min(file.frames, max_seconds * file.samplerate)), "float32", always_2d=True)
            rate = file.samplerate
    except AudioError as error:
        return Sound(name, problem=str(error))
    except Exception as error:  # an untrusted file
        return Sound(name, problem=f"cannot be read ({error})")
    note = f"first {max_seconds:g} s of {seconds:.1f} s" if seconds > max_seconds else f"{seconds:.1f} s"
    return Sound(name, encode(np.nan_to_num(samples.mean(axis=1)), rate), note)


def encode(audio: np.ndarray, rate: int) -> str:
    """Mono samples (S,) as a small data URI: MP3 if libsndfile can write it, else FLAC at 16 kHz."""
    mp3 = "MP3" in soundfile.available_formats()
    if not mp3 or rate not in _MP3_RATES:
        target = 44_100 if mp3 and rate > 48_000 else 16_000
        audio, rate = soxr.resample(audio, rate, target, quality="HQ"), target
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(audio, -1.0, 1.0), rate, format="MP3" if mp3 else "FLAC")
    return _uri("audio/mpeg" if mp3 else "audio/flac", buffer.getvalue())


def _uri(mime: str, data: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"
