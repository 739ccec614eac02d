"""Audio files: where a row's path may lead, and how a file becomes a waveform.

A manifest is data from elsewhere: its paths are resolved inside the audio roots of the config and nowhere else.
"""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile
import soxr

from nemo_desta.data.rows import RowError


class AudioError(RowError):
    """An audio file that cannot be used: ``reason`` is one of outside_root, not_found, corrupt, empty."""


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


class AudioRoots:
    """Named folders in which audio may lie: ``{"default": folder, "librispeech": folder, ...}``.

    A path that a row gives is looked up in the root of that name when one is asked for, else in the root called like
    the row's dataset, else in ``default``. Where it leads in the end (after ``..`` and symlinks) must be inside one
    of the roots.
    """

    def __init__(self, roots: Mapping[str, str | Path]) -> None:
        self.roots = {name: Path(os.path.realpath(Path(folder).expanduser())) for name, folder in roots.items()}

    def resolve(self, path: str, *, root: str | None = None, dataset: str | None = None) -> Path:
        """The real file behind a row's ``path``.

        Raises:
            AudioError: outside every root, or no such file (a ``.wav`` of the same name is taken instead, as
                DeSTA2.5 does).
        """
        name = root or (dataset if dataset in self.roots else "default")
        if name not in self.roots:
            raise AudioError(
                "outside_root", f"'{path}' belongs to no audio root: '{name}' is not among {sorted(self.roots)}"
            )
        if "\0" in path or len(path) > 4096:
            raise AudioError("not_found", f"{path!r:.80} is not a file name")
        wanted = self.roots[name] / path
        for candidate in (wanted, wanted.with_suffix(".wav")):
            real = Path(os.path.realpath(candidate))
            if not any(real.is_relative_to(folder) for folder in self.roots.values()):
                raise AudioError(
                    "outside_root",
                    f"'{path}' leads to {real}, outside every audio root ({self._listed()}); "
                    "move the file or add its folder to data.audio_roots",
                )
            if os.path.isfile(real):
                return real
        raise AudioError("not_found", f"no file '{path}' under audio root '{name}' ({self.roots[name]})")

    def _listed(self) -> str:
        return ", ".join(f"{name}={folder}" for name, folder in self.roots.items())


def load_audio(
    file: AudioFile | BinaryIO,
    sampling_rate: int = 16_000,
    *,
    normalize_dbfs: float | None = None,
    name: str | None = None,
) -> np.ndarray:
    """Read a file as mono float32 (S,) in [-1, 1] at ``sampling_rate``.

    Channels are averaged, then resampled (soxr HQ). What libsndfile does not know (m4a, webm, video) is read by
    torchcodec where it is installed. ``normalize_dbfs`` sets the RMS level, see `normalize_level`. ``name``: how
    errors call the file, its path if None.

    Raises:
        AudioError: cannot be read, holds no sample, or holds NaN or infinity.
    """
    name = name or str(file)
    opened = _opened(file)
    try:
        samples, rate = soundfile.read(opened, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, RuntimeError) as error:
        samples, rate = _read_by_torchcodec(opened, name, error)
    audio = to_clip(samples, rate, sampling_rate, name)
    return audio if normalize_dbfs is None else normalize_level(audio, normalize_dbfs)


def to_clip(samples: np.ndarray, rate: float, sampling_rate: int, name: str) -> np.ndarray:
    """(S, channels) of any number type at ``rate`` -> mono (S,) float32 at ``sampling_rate``.

    Levels are checked as `in_range` says, channels become one as `mixed` says, then it is resampled (soxr HQ).

    Raises:
        AudioError: no sample, a rate that is none, or samples that are none; ``name`` says whose.
    """
    from nemo_desta.data.levels import check_rate, in_range, mixed

    check_rate(rate, name)
    audio = mixed(in_range(samples, name), name)
    if rate != sampling_rate:
        audio = soxr.resample(audio, rate, sampling_rate, quality="HQ")
        if audio.size == 0:
            raise AudioError("empty", f"{name} holds no samples at {sampling_rate} Hz")
    return audio


def count_samples(file: AudioFile, sampling_rate: int = 16_000) -> int:
    """Length of a file at ``sampling_rate``, from its header alone.

    Raises:
        AudioError: cannot be read, or empty.
    """
    try:
        header = soundfile.info(_opened(file))
    except (soundfile.SoundFileError, OSError, RuntimeError) as error:
        raise AudioError("corrupt", f"cannot read {file}: {error}") from error
    if header.frames == 0:
        raise AudioError("empty", f"{file} holds no samples")
    return max(1, round(header.frames * sampling_rate / header.samplerate))


def normalize_level(audio: np.ndarray, dbfs: float) -> np.ndarray:
    """Scale (S,) to an RMS of ``dbfs``, or as near as a peak of 1.0 allows. Silence stays silence."""
    peak = float(np.abs(audio).max())
    if peak == 0.0:
        return audio
    rms = float(np.sqrt(np.mean(np.square(audio, dtype=np.float64))))
    return audio * np.float32(min(10.0 ** (dbfs / 20.0) / rms, 1.0 / peak))


def _opened(file: AudioFile | BinaryIO) -> str | BinaryIO:
    if isinstance(file, TarSlice):
        return io.BytesIO(file.read())
    return file if hasattr(file, "read") else str(file)


def _read_by_torchcodec(file: str | BinaryIO, name: str, error: Exception) -> tuple[np.ndarray, int]:
    """(S, channels) float32 and the rate of a file that libsndfile refused with ``error``."""
    if isinstance(file, str) and not os.path.isfile(file):
        raise AudioError("not_found", f"no file '{name}'") from error
    if not isinstance(file, str):
        file.seek(0)
        if not (file := file.read()):
            raise AudioError("corrupt", f"cannot read {name}: it holds no bytes") from error
    elif os.path.getsize(file) == 0:
        raise AudioError("corrupt", f"cannot read {name}: it holds no bytes") from error
    try:
        from torchcodec.decoders import AudioDecoder
    except (ImportError, OSError, RuntimeError):  # not installed, or no FFmpeg for it
        hint = (
            "wav, flac, ogg and mp3 are read; others (m4a, webm) with torchcodec: pip install torchcodec, and FFmpeg"
        )
        raise AudioError("corrupt", f"cannot read {name}: {error} ({hint})") from error
    try:
        decoded = AudioDecoder(file).get_all_samples()
    except (RuntimeError, ValueError) as second:
        raise AudioError("corrupt", f"cannot read {name}: {error}; torchcodec: {second}") from second
    return decoded.data.T.numpy(), decoded.sample_rate
