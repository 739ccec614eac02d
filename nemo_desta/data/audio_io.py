"""Audio files: where a row's path may lead, and how a file becomes a waveform.

A manifest is data from elsewhere: its paths are resolved inside the audio roots of the config and nowhere else.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soxr

from nemo_desta.data.audio_decoding import (
    AudioError,
    AudioFile,
    TarSlice,
    UnknownFormat,
    audio_guard,
    check_rate,
    duration_fault,
    longest,
    open_sound,
)
from nemo_desta.data.levels import in_range, mixed

__all__ = [
    "AudioError",
    "AudioFile",
    "AudioRoots",
    "TarSlice",
    "count_samples",
    "load_audio",
    "normalize_level",
    "read_audio",
    "to_clip",
]

logger = logging.getLogger(__name__)

#: Where a file with one of these endings is missing, the ``.wav`` of the same name is taken, as DeSTA2.5 does.
WAV_INSTEAD_OF = (".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac")


class AudioRoots:
    """Named folders in which audio may lie: ``{"default": folder, "librispeech": folder, ...}``.

    A path that a row gives is looked up in the root of that name when one is asked for, else in the root called like
    the row's dataset, else in ``default``. Where it leads in the end (after ``..`` and symlinks) must be inside one
    of the roots.
    """

    def __init__(self, roots: Mapping[str, str | Path]) -> None:
        self.roots = {name: Path(os.path.realpath(Path(folder).expanduser())) for name, folder in roots.items()}
        self._said = False

    def resolve(self, path: str, *, root: str | None = None, dataset: str | None = None) -> Path:
        """The real file behind a row's ``path``.

        Raises:
            AudioError: outside every root, or no such file. See `WAV_INSTEAD_OF`; the log says once that it was used.
        """
        name = root or (dataset if dataset in self.roots else "default")
        if name not in self.roots:
            raise AudioError(
                "outside_root", f"'{path}' belongs to no audio root: '{name}' is not among {sorted(self.roots)}"
            )
        if "\0" in path or len(path) > 4096:
            raise AudioError("not_found", f"{path!r:.80} is not a file name")
        wanted = self.roots[name] / path
        replaced = path.lower().endswith(WAV_INSTEAD_OF)
        for candidate in (wanted, wanted.with_suffix(".wav")) if replaced else (wanted,):
            real = Path(os.path.realpath(candidate))
            if not any(real.is_relative_to(folder) for folder in self.roots.values()):
                raise AudioError(
                    "outside_root",
                    f"'{path}' leads to {real}, outside every audio root ({self._listed()}); "
                    "move the file or add its folder to data.audio_roots",
                )
            if os.path.isfile(real):
                if candidate is not wanted and not self._said:
                    self._said = True
                    logger.warning("'%s' is missing, %s is used instead; so for other files of its ending", path, real)
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
    duration: float | None = None,
) -> np.ndarray:
    """Read a file as mono float32 (S,) in [-1, 1] at ``sampling_rate``.

    What is done to levels, channels and rates: see `to_clip`. ``normalize_dbfs`` sets the RMS level, see
    `normalize_level`. ``name`` and ``duration`` as for `read_audio`.

    Raises:
        AudioError: cannot be read, is cut, has another duration, or is no clip (see `to_clip`).
    """
    name = name or str(file)
    samples, rate = read_audio(file, name=name, duration=duration)
    with audio_guard(name):
        audio = to_clip(samples, rate, sampling_rate, name)
        return audio if normalize_dbfs is None else normalize_level(audio, normalize_dbfs)


def read_audio(
    file: AudioFile | BinaryIO, *, name: str | None = None, duration: float | None = None
) -> tuple[np.ndarray, int]:
    """All samples of a file, (S, channels) float32 in [-1, 1], and their rate.

    What libsndfile does not know (m4a, webm, video) is read by torchcodec where it is installed.

    Args:
        name: how errors call the file, its path if None.
        duration: seconds that the file is said to have. A longer one is not decoded to its end.

    Raises:
        AudioError: cannot be read, is cut, or has another duration than ``duration`` (`DURATION_TOLERANCE`).
    """
    name = name or str(file)
    most_secs = longest(duration)
    try:
        with open_sound(file, name) as sound:
            blocks, rate = list(sound.blocks(most_secs)), sound.sampling_rate
            samples = blocks[0] if len(blocks) == 1 else np.concatenate(blocks or [np.zeros((0, 1), np.float32)])
    except UnknownFormat as error:
        samples, rate = _read_by_torchcodec(file, name, error)
    secs = len(samples) / rate
    if secs and (fault := duration_fault(secs, duration)):
        raise AudioError("wrong_duration", f"{name} is {'more than ' if secs > most_secs else ''}{fault}")
    return samples, rate


def to_clip(samples: np.ndarray, rate: float, sampling_rate: int, name: str) -> np.ndarray:
    """(S, channels) of any number type at ``rate`` -> mono (S,) float32 at ``sampling_rate``.

    Levels are checked as `in_range` says, channels become one as `mixed` says, then it is resampled (soxr HQ).

    Raises:
        AudioError: no sample, a rate that is none, or samples that are none; ``name`` says whose.
    """
    check_rate(rate, name)
    audio = mixed(in_range(samples, name), name)
    if rate != sampling_rate:
        audio = soxr.resample(audio, rate, sampling_rate, quality="HQ")
        if audio.size == 0:
            raise AudioError("empty", f"{name} holds no samples at {sampling_rate} Hz")
    return audio


def count_samples(file: AudioFile, sampling_rate: int = 16_000) -> int:
    """Length of a file at ``sampling_rate``, from its header; decoded only where the header does not say it.

    Raises:
        AudioError: cannot be read, is cut, or empty.
    """
    with open_sound(file, str(file)) as sound:
        num_frames = sound.num_frames
        if num_frames is None:
            num_frames = sum(map(len, sound.blocks()))
        if num_frames == 0:
            raise AudioError("empty", f"{file} holds no samples")
        return max(1, round(num_frames * sampling_rate / sound.sampling_rate))


def normalize_level(audio: np.ndarray, dbfs: float) -> np.ndarray:
    """Scale (S,) to an RMS of ``dbfs``, or as near as a peak of 1.0 allows. Silence stays silence."""
    peak = float(np.abs(audio).max())
    if peak == 0.0:
        return audio
    rms = float(np.sqrt(np.mean(np.square(audio, dtype=np.float64))))
    return audio * np.float32(min(10.0 ** (dbfs / 20.0) / rms, 1.0 / peak))


def _read_by_torchcodec(file: AudioFile | BinaryIO, name: str, error: AudioError) -> tuple[np.ndarray, int]:
    """(S, channels) float32 and the rate of a file that libsndfile refused with ``error``."""
    try:
        from torchcodec.decoders import AudioDecoder
    except (ImportError, OSError, RuntimeError):  # not installed, or no FFmpeg for it
        hint = (
            "wav, flac, ogg and mp3 are read; others (m4a, webm) with torchcodec: pip install torchcodec, and FFmpeg"
        )
        raise AudioError("corrupt", f"{error} ({hint})") from error
    with audio_guard(name):
        if hasattr(file, "seek"):
            file.seek(0)
        decoder = AudioDecoder(file.read() if hasattr(file, "read") else str(file))
        decoded = decoder.get_all_samples()
        found, promised = decoded.data.shape[1] / decoded.sample_rate, decoder.metadata.duration_seconds_from_header
        if found < (promised or 0) and duration_fault(found, promised):
            raise AudioError("cut", f"{name} is cut: it holds {found:.2f} s, its header says {promised:.2f} s")
        return decoded.data.T.numpy(), decoded.sample_rate
