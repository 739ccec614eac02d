"""Strangers' base64 -> mono samples, without being fooled by a header and without any decoder but libsndfile.

FFmpeg is never asked here: playlists and containers can name other files and hosts. Letters: S samples.
"""

import base64
import binascii
import io

import numpy as np
import soundfile

from nemo_desta.data.audio_io import AudioError, to_clip
from nemo_desta.serving.errors import ApiError

#: Samples per second over all channels that the audio of a request may have on average: 48 kHz stereo. What is
#: denser (hundreds of channels, rates of radio) is shorter before it is refused.
DENSITY = 96_000
#: Samples over all channels that are decoded at a time.
BLOCK = 1 << 20


class AudioBudget:
    """What one request may still bring: ``secs`` of audio."""

    def __init__(self, max_secs: float) -> None:
        self.max_secs = max_secs
        self.secs = 0.0

    def load(self, data: str, *, format: str, sampling_rate: int, where: str) -> np.ndarray:
        """The file in ``data`` (base64) as mono float32 (S,) at ``sampling_rate``.

        Raises:
            ApiError: 400 no base64, another format, not readable, empty; 413 too long. ``where`` is its param.
        """
        content = _decoded(data, where)
        found = _sniff(content)
        if not (found == format or {found, format} == {"ogg", "opus"}):
            what = f"the data is {found}" if found else "the data is none of the formats known here"
            raise ApiError(400, f"{where}: format says '{format}', but {what}", param=where, code="invalid_audio")
        try:
            with soundfile.SoundFile(io.BytesIO(content)) as file:
                samples, rate = self._read(file, where), file.samplerate
            return to_clip(samples[:, None], rate, sampling_rate, where)
        except (soundfile.SoundFileError, RuntimeError) as error:
            raise ApiError(400, f"{where} cannot be read: {error}", param=where, code="invalid_audio") from error
        except AudioError as error:
            raise ApiError(400, str(error), param=where, code=f"{error.reason}_audio") from error

    def _read(self, file: soundfile.SoundFile, where: str) -> np.ndarray:
        """All samples, channels averaged, (S,) float32. The header's length is not believed."""
        blocks, num_frames = [np.zeros(0, np.float32)], 0
        size = max(1, BLOCK // file.channels)
        while len(block := file.read(size, dtype="float32", always_2d=True)):
            blocks.append(block[:, 0] if file.channels == 1 else block.mean(axis=1))
            num_frames += len(block)
            if self.secs + num_frames * max(1 / file.samplerate, file.channels / DENSITY) > self.max_secs:
                what = f"{file.samplerate} Hz, {file.channels} channels"
                raise ApiError(
                    413,
                    f"a request may bring {self.max_secs:g} s of audio (at most {DENSITY} samples per second over all "
                    f"channels), and with {where} ({what}) this one has more",
                    param=where,
                    code="audio_too_long",
                )
        self.secs += num_frames / file.samplerate
        return np.concatenate(blocks)


def _decoded(data: str, where: str) -> bytes:
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        hint = "; send the base64 alone, without 'data:...;base64,'" if data.startswith("data:") else ""
        raise ApiError(400, f"{where} is no base64: {error}{hint}", param=where, code="invalid_base64") from error
    if not content:
        raise ApiError(400, f"{where} is empty: it holds no bytes", param=where, code="empty_audio")
    return content


def _sniff(content: bytes) -> str | None:
    """The format by a file's first bytes."""
    if content[:4] in (b"RIFF", b"RIFX", b"RF64") and content[8:12] == b"WAVE":
        return "wav"
    if content[:4] == b"fLaC":
        return "flac"
    if content[:4] == b"OggS":
        return "opus" if b"OpusHead" in content[:64] else "ogg"
    if content[:3] == b"ID3" or (content[0] == 0xFF and len(content) > 1 and content[1] & 0xE0 == 0xE0):
        return "flac" if content[:3] == b"ID3" and b"fLaC" in content[: 1 << 16] else "mp3"
    return None
