"""Decodes audio files in blocks of samples. Headers are checked against the file; a truncated file is an error.

Letters: S samples.
"""

import io
import math
import numbers
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import soundfile

from nemo_desta.data.containers import broken_page, promise_of
from nemo_desta.data.mpeg import is_tagged, read_stream, with_length
from nemo_desta.data.row_schema import LONGEST_SECS
from nemo_desta.errors import RowError

#: Allowed difference between a clip's length and its stated duration: seconds, or a share when that is more.
DURATION_TOLERANCE = (0.5, 0.05)
#: Sampling rates that a clip may have, in Hz.
RATES = (1_000, 768_000)

_BLOCK = 1 << 24  # samples over all channels decoded at a time
_HEAD = 1 << 16  # bytes of an mp3 searched for its tag
_COUNTED_HEADER = 44  # bytes: some WAV writers count the header as samples
_DENSEST = {"FLAC": 6554, "MP3": 48}  # samples of a channel per byte: the longest frame over the shortest
_ENDLESS = 0x7FFFFFFFFFFFFFFF  # libsndfile's length of a FLAC that does not state it


class AudioError(RowError):
    """An audio file that cannot be used.

    ``reason`` is one of outside_root, not_found, corrupt, empty, too_long, cut (the file holds less than its header
    says), wrong_duration (its length differs from the row's), rate, level (see `levels`), base64.
    """


class UnknownFormat(AudioError):
    """A file that libsndfile cannot open."""


class TarSlice(NamedTuple):
    """An audio file inside an uncompressed tar archive."""

    archive: Path
    offset: int
    size: int

    def read(self) -> bytes:
        with open(self.archive, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def __str__(self) -> str:
        return f"{self.archive} at byte {self.offset}"


AudioFile = str | Path | TarSlice


class Sound:
    """An open audio file. ``num_frames``: samples per channel by its header, None if the header does not state it."""

    def __init__(self, file: soundfile.SoundFile, name: str, num_frames: int | None) -> None:
        self.file = file
        self.name = name
        self.num_frames = num_frames
        self.sampling_rate = file.samplerate

    def blocks(self, most_secs: float = LONGEST_SECS) -> Iterator[np.ndarray]:
        """All samples in blocks of (S, channels) float32. Decoding stops after ``most_secs``, at the latest after the
        next block.

        Raises:
            AudioError: ``cut`` if the file ends earlier than its header says; ``too_long`` above `LONGEST_SECS`.
        """
        promised = math.inf if self.num_frames is None else self.num_frames
        wanted = min(promised, math.floor(min(most_secs, LONGEST_SECS) * self.sampling_rate) + 1)
        largest, done, ended = max(1, _BLOCK // self.file.channels), 0, False
        while done < wanted and not ended:
            length = min(largest, wanted - done)
            block = self.file.read(length, dtype="float32", always_2d=True)
            done, ended = done + len(block), len(block) < length
            if len(block):
                yield block
        if done > LONGEST_SECS * self.sampling_rate:
            raise AudioError("too_long", f"{self.name} is longer than {LONGEST_SECS} s; split it into clips")
        if ended and self.num_frames is not None and done + _slack(self.file) < promised:
            raise _cut(self.name, done / self.sampling_rate, promised / self.sampling_rate)

    def check_end(self) -> None:
        """Seek to the last sample and decode it. Raises ``cut``."""
        if self.file.frames != _ENDLESS:
            self.file.seek(self.file.frames - 1)
            if len(self.file.read(1, always_2d=True)) != 1:
                raise AudioError("cut", f"{self.name} is cut: the end that its header promises cannot be read")


@contextmanager
def open_sound(file: AudioFile | BinaryIO, name: str) -> Iterator[Sound]:
    """Open a file with libsndfile. Errors in the body are also converted to AudioError.

    Raises:
        UnknownFormat: libsndfile cannot open it. AudioError: no regular file, or truncated by its header and end.
    """
    with audio_guard(name):
        if isinstance(file, TarSlice):
            file = io.BytesIO(file.read())
        elif not hasattr(file, "read"):
            file = regular_file(str(file), name)
        with open(file, "rb") if isinstance(file, str) else nullcontext(file) as raw:
            if not (size := raw.seek(0, os.SEEK_END)):
                raise AudioError("corrupt", f"cannot read {name}: it holds no bytes")
            promise, broken = promise_of(raw, size), broken_page(raw, size)
            raw.seek(0)
            try:
                opened = _Forward(file)
            except soundfile.SoundFileError as error:
                raise UnknownFormat("corrupt", f"cannot read {name}: {error}") from error
            try:
                num_frames = None if opened.frames == _ENDLESS else opened.frames
                rate = opened.samplerate
                check_rate(rate, name)
                if broken:
                    raise AudioError("cut", f"{name} is cut: its last page breaks off after {num_frames / rate:.2f} s")
                if promise and promise.promised > promise.there + _COUNTED_HEADER:
                    secs = num_frames / rate
                    raise _cut(name, secs, secs * promise.promised / max(1, promise.there))
                if opened.format == "MP3":
                    opened, num_frames = _counted(opened, raw, name)
                if num_frames is not None and num_frames > size * _DENSEST.get(opened.format, math.inf):
                    detail = f"its header says {num_frames / rate:.0f} s, and it has {size} bytes"
                    raise AudioError("cut", f"{name} is cut, or its header wrong: {detail}")
                yield Sound(opened, name, num_frames)
            finally:
                opened.close()


@contextmanager
def audio_guard(name: str) -> Iterator[None]:
    """Turn any error with an untrusted file (also a MemoryError) into an AudioError that names it."""
    try:
        yield
    except RowError:
        raise
    except Exception as error:
        detail = f"{error}" if isinstance(error, soundfile.SoundFileError) else f"{type(error).__name__}: {error}"
        raise AudioError("corrupt", f"cannot read {name}: {detail:.500}") from error


def regular_file(path: str, name: str) -> str:
    """Return ``path`` if it is a regular file. A FIFO or a device is never opened.

    Raises:
        AudioError: not a regular file, or a headerless .raw file, whose rate and type are unknown.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        raise AudioError("not_found", f"no file '{name}'") from error
    if not stat.S_ISREG(found.st_mode):
        raise AudioError("not_found", f"'{name}' is no regular file but a folder, a pipe or a device")
    if path.lower().endswith(".raw"):
        raise AudioError("corrupt", f"cannot read {name}: .raw does not say its rate; convert it to wav or flac")
    return path


def check_rate(rate: Any, name: str) -> None:
    """Raise `AudioError` (``rate``) unless ``rate`` is a number within `RATES`."""
    is_number = isinstance(rate, numbers.Real) and not isinstance(rate, bool)
    if not is_number or not RATES[0] <= rate <= RATES[1]:  # NaN is not
        rule = f"it must be a number from {RATES[0]} to {RATES[1]} (Hz)"
        raise AudioError("rate", f"{name} has the sampling rate {rate!r:.40}; {rule}")


def longest(duration: float | None) -> float:
    """The maximum length in seconds of a clip with the stated ``duration`` (None: not stated)."""
    if duration is None or not duration <= LONGEST_SECS:
        return LONGEST_SECS
    return duration + max(DURATION_TOLERANCE[0], DURATION_TOLERANCE[1] * duration)


def duration_fault(found: float, said: float | None, who: str = "the row") -> str | None:
    """None if a clip of ``found`` seconds has the duration ``said`` by ``who`` (None: unknown), within
    `DURATION_TOLERANCE`; otherwise a message with both."""
    if said is None or (said <= LONGEST_SECS and abs(found - said) <= longest(said) - said):
        return None
    return f"{found:.2f} s long, {who} says " + (f"{said:.2f} s" if said <= LONGEST_SECS else f"over {LONGEST_SECS} s")


class _Forward(soundfile.SoundFile):
    """Reads sequentially. soundfile limits requests to the header's length and seeks after each block; both fail when
    the header is wrong."""

    def seekable(self) -> bool:
        return False


def _slack(file: soundfile.SoundFile) -> int:
    """Samples that decoders may omit at the ends: one frame of an mp3."""
    return (1152 if file.samplerate >= 32_000 else 576) if file.format == "MP3" else 0


def _counted(opened: soundfile.SoundFile, raw: BinaryIO, name: str) -> tuple[soundfile.SoundFile, int | None]:
    """An open mp3 and its length. A missing tag is added, so that libsndfile need not estimate the length."""
    here = raw.tell()  # libsndfile may read from the same object
    raw.seek(0)
    data = raw.read(_HEAD)
    if not is_tagged(data):
        data += raw.read()
        if (stream := read_stream(data)) is not None:
            num_frames = stream.num_frames * stream.samples_per_frame
            if not stream.whole:
                secs = num_frames / opened.samplerate
                raise AudioError("cut", f"{name} is cut: its last frame breaks off after {secs:.2f} s")
            opened.close()
            return _Forward(io.BytesIO(with_length(data, stream))), num_frames
    raw.seek(here)
    return opened, opened.frames


def _cut(name: str, found: float, promised: float) -> AudioError:
    return AudioError("cut", f"{name} is cut: it holds {found:.2f} s, its header says {promised:.2f} s")
