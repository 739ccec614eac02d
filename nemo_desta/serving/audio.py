"""Decodes base64 of untrusted files to mono samples, without trusting their headers.

libsndfile decodes most formats. FFmpeg (by torchcodec, if installed) decodes only m4a and webm, recognised by their
first bytes, and only from memory. Playlists, which can name other files and hosts, never reach it. Letters: S samples,
C channels.
"""

import io

import numpy as np

from nemo_desta.data.audio_decoding import UnknownFormat, audio_guard, duration_fault, open_sound
from nemo_desta.data.audio_io import AudioError, to_clip
from nemo_desta.data.encoded import from_base64
from nemo_desta.serving.errors import ApiError
from nemo_desta.types import Rates

#: Samples per second over all channels: 48 kHz stereo. Denser audio (hundreds of channels, radio sampling rates) gets
#: a proportionally smaller limit of seconds.
DENSITY = 96_000
#: Format names of clients (in any case) -> names used here.
FORMATS = {
    **{name: name for name in ("wav", "mp3", "flac", "ogg", "opus", "m4a", "webm")},
    **{"wave": "wav", "mpeg": "mp3", "mpga": "mp3", "oga": "ogg", "mp4": "m4a"},
}


class AudioBudget:
    """The limit of audio in one request. ``secs``: seconds decoded so far."""

    def __init__(self, max_secs: float) -> None:
        self.max_secs = max_secs
        self.secs = 0.0

    def load(self, data: str, *, format: str, sampling_rate: Rates, where: str) -> np.ndarray:
        """The file in ``data`` (base64 in any form, or a data URI) as a clip at ``sampling_rate``, see `to_clip`.

        Args:
            format: one of `FORMATS`, in any case.

        Raises:
            ApiError: 400 for invalid base64 and for another format, unreadable, cut, empty or too loud audio; 413 for
                too long audio. ``where`` is its param.
        """
        try:
            content = from_base64(data, where)
        except AudioError as error:
            raise ApiError(400, str(error), param=where, code="invalid_base64") from error
        if not content:
            raise ApiError(400, f"{where} is empty: it holds no bytes", param=where, code="empty_audio")
        wanted, found = FORMATS[format.lower()], _sniff(content)
        if not (found == wanted or {found, wanted} == {"ogg", "opus"}):
            what = f"the data is {found}" if found else "the data is in no known format"
            raise ApiError(400, f"{where}: format says '{format}', but {what}", param=where, code="invalid_audio")
        try:
            read = self._by_torchcodec if found in ("m4a", "webm") else self._by_libsndfile
            samples, rate = read(content, where)
            num_frames, num_channels = samples.shape
            if num_frames / rate > self._most_secs(rate, num_channels):
                raise ApiError(
                    413,
                    f"the limit is {self.max_secs:g} s of audio per request (at {DENSITY} samples per second over all "
                    f"channels); {where} ({rate} Hz, {num_channels} channels) exceeds it",
                    param=where,
                    code="audio_too_long",
                )
            self.secs += num_frames / rate
            return to_clip(samples, rate, sampling_rate, where)
        except AudioError as error:
            code = "invalid_audio" if isinstance(error, UnknownFormat) else f"{error.reason}_audio"
            raise ApiError(400, str(error), param=where, code=code) from error

    def _by_libsndfile(self, content: bytes, where: str) -> tuple[np.ndarray, int]:
        """(S, C) and the rate; of a longer file, slightly more than the limit is read."""
        with open_sound(io.BytesIO(content), where) as sound:
            most_secs = self._most_secs(sound.sampling_rate, sound.file.channels)
            blocks = list(sound.blocks(most_secs)) or [np.zeros((0, sound.file.channels), np.float32)]
            return np.concatenate(blocks), sound.sampling_rate

    def _by_torchcodec(self, content: bytes, where: str) -> tuple[np.ndarray, int]:
        """As `_by_libsndfile`."""
        try:
            from torchcodec.decoders import AudioDecoder
        except (ImportError, OSError, RuntimeError) as error:  # not installed, or no FFmpeg for it
            hint = "m4a and webm need torchcodec and FFmpeg at the server (pip install torchcodec); or send wav"
            raise ApiError(400, f"{where}: {hint}", param=where, code="unsupported_format") from error
        with audio_guard(where):
            decoder = AudioDecoder(content)
            header = decoder.metadata
            most_secs = self._most_secs(header.sample_rate, header.num_channels)
            decoded = decoder.get_samples_played_in_range(0.0, most_secs + 1.0)
            found, promised = decoded.data.shape[1] / decoded.sample_rate, header.duration_seconds_from_header
            fault = duration_fault(found, promised, "its header")
            if fault and found < min(promised, most_secs):
                raise AudioError("cut", f"{where} is cut: it is {fault}")
            return decoded.data.T.numpy(), decoded.sample_rate

    def _most_secs(self, rate: int, num_channels: int) -> float:
        """The limit of seconds for a file."""
        return max(0.0, self.max_secs - self.secs) / max(1.0, rate * num_channels / DENSITY)


def _sniff(content: bytes) -> str | None:
    """The format, from a file's first bytes."""
    if content[:4] in (b"RIFF", b"RIFX", b"RF64") and content[8:12] == b"WAVE":
        return "wav"
    if content[:4] == b"fLaC":
        return "flac"
    if content[:4] == b"OggS":
        return "opus" if b"OpusHead" in content[:64] else "ogg"
    if content[4:8] == b"ftyp":
        return "m4a"
    if content[:4] == b"\x1aE\xdf\xa3":
        return "webm"
    if content[:3] == b"ID3" or (content[0] == 0xFF and len(content) > 1 and content[1] & 0xE0 == 0xE0):
        return "flac" if content[:3] == b"ID3" and b"fLaC" in content[: 1 << 16] else "mp3"
    return None
