"""Audio files: resolving the paths in rows, and reading a file as a waveform.

A manifest is untrusted: its paths are resolved only inside the audio roots of the config.
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
    UnknownFormat,
    audio_guard,
    check_rate,
    duration_fault,
    longest,
    open_sound,
)
from nemo_desta.data.audio_decoding import TarSlice as TarSlice
from nemo_desta.data.levels import in_range, mixed
from nemo_desta.perception.resample import resampled_length
from nemo_desta.types import Rates, first_rate

logger = logging.getLogger(__name__)

#: If a file with one of these endings is missing, the ``.wav`` of the same name is used, as in DeSTA2.5.
WAV_INSTEAD_OF = (".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac")


class AudioRoots:
    """Named folders that contain audio: ``{"default": folder, "librispeech": folder, ...}``. A single
    folder is ``default``.

    A row's path is relative to the root given by ``root``, else to the root named like the row's dataset, else to
    ``default``. In the dataset's own root the path may begin with the dataset's name, as in DeSTA-AQA5M, although the
    root has no such folder. The resolved path (after ``..`` and symlinks) must be inside one of the roots.
    """

    def __init__(self, roots: Mapping[str, str | Path] | str | Path) -> None:
        roots = roots if isinstance(roots, Mapping) else {"default": roots}
        self.roots = {name: Path(os.path.realpath(Path(folder).expanduser())) for name, folder in roots.items()}
        self._said = False

    def resolve(self, path: str, *, root: str | None = None, dataset: str | None = None) -> Path:
        """The real file of a row's ``path``.

        Raises:
            AudioError: outside every root, or no such file. Using `WAV_INSTEAD_OF` is logged once.
        """
        name = root or (dataset if dataset in self.roots else "default")
        if name not in self.roots:
            raise AudioError(
                "outside_root", f"'{path}' belongs to no audio root: '{name}' is not among {sorted(self.roots)}"
            )
        if "\0" in path or len(path) > 4096:
            raise AudioError("not_found", f"{path!r:.80} is not a file name")
        inside = [path, path.removeprefix(f"{dataset}/")] if name == dataset else [path]
        for wanted in dict.fromkeys(self.roots[name] / one for one in inside):
            replaced = path.lower().endswith(WAV_INSTEAD_OF)
            for candidate in (wanted, wanted.with_suffix(".wav")) if replaced else (wanted,):
                real = Path(os.path.realpath(candidate))
                if not any(real.is_relative_to(folder) for folder in self.roots.values()):
                    listed = ", ".join(f"{name}={folder}" for name, folder in self.roots.items())
                    raise AudioError(
                        "outside_root",
                        f"'{path}' leads to {real}, outside every audio root ({listed}); move the file or add its "
                        "folder to data.audio_roots",
                    )
                if os.path.isfile(real):
                    if candidate is not wanted and not self._said:
                        self._said = True
                        logger.warning(
                            "'%s' is missing, %s is used instead; the same applies to other files", path, real
                        )
                    return real
        raise AudioError("not_found", f"no file '{path}' under audio root '{name}' ({self.roots[name]})")


def load_audio(
    file: AudioFile | BinaryIO,
    sampling_rate: Rates = 16_000,
    *,
    normalize_dbfs: float | None = None,
    name: str | None = None,
    duration: float | None = None,
) -> np.ndarray:
    """Read a file as mono float32 in [-1, 1] at ``sampling_rate``: (S,), or (S, K) for several rates.

    Levels, channels and rates are converted by `to_clip`. ``normalize_dbfs`` sets the RMS level, see
    `normalize_level`. ``name`` and ``duration``: see `read_audio`.

    Raises:
        AudioError: unreadable, truncated, another duration, or rejected by `to_clip`.
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

    Formats that libsndfile does not support (m4a, webm, video) are read by torchcodec if it is installed.

    Args:
        name: the file's name in errors, its path if None.
        duration: expected seconds. A longer file is not decoded to its end.

    Raises:
        AudioError: unreadable, truncated, or of another length than ``duration`` (`DURATION_TOLERANCE`).
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


def to_clip(samples: np.ndarray, rate: float, sampling_rate: Rates, name: str) -> np.ndarray:
    """(S, channels) of any number type at ``rate`` -> mono (S,) float32 at ``sampling_rate``, (S, K) for several.

    Levels are checked by `in_range`, channels mixed by `mixed`, then the clip is resampled (soxr HQ) to each rate: an
    encoder hears the file at its own rate, whatever the other encoders' is.

    Raises:
        AudioError: no samples, an invalid rate, or invalid samples; the message starts with ``name``.
    """
    check_rate(rate, name)
    audio = mixed(in_range(samples, name), name)
    first = first_rate(sampling_rate)
    clip = _resampled(audio, rate, first)
    if clip.size == 0:
        raise AudioError("empty", f"{name} holds no samples at {first} Hz")
    if isinstance(sampling_rate, int):
        return clip
    columns = np.zeros((len(clip), len(sampling_rate)), np.float32)
    for column, one in zip(columns.T, sampling_rate, strict=True):
        found = clip if one == first else _resampled(audio, rate, one)[: resampled_length(len(clip), first, one)]
        column[: len(found)] = found
    return columns


def _resampled(audio: np.ndarray, rate: float, new_rate: int) -> np.ndarray:
    return audio if rate == new_rate else soxr.resample(audio, rate, new_rate, quality="HQ")


def silence(secs: float, sampling_rate: Rates) -> np.ndarray:
    """A clip of zeros, as `to_clip` makes it."""
    first = first_rate(sampling_rate)
    return to_clip(np.zeros((round(secs * first), 1), np.float32), first, sampling_rate, "silence")


def at_rate(clip: np.ndarray, sampling_rate: Rates, wanted: int) -> np.ndarray:
    """A clip of `to_clip` at ``sampling_rate`` as (S,) at ``wanted``."""
    rates = (sampling_rate,) if isinstance(sampling_rate, int) else sampling_rate
    if clip.ndim == 2 and wanted in rates:
        return np.ascontiguousarray(clip[: resampled_length(len(clip), rates[0], wanted), rates.index(wanted)])
    return _resampled(clip if clip.ndim == 1 else np.ascontiguousarray(clip[:, 0]), rates[0], wanted)


def count_samples(file: AudioFile, sampling_rate: int = 16_000) -> int:
    """Length of a file at ``sampling_rate``, from its header; decoded only if the header does not state it.

    Raises:
        AudioError: unreadable, truncated, or empty.
    """
    with open_sound(file, str(file)) as sound:
        num_frames = sound.num_frames
        if num_frames is None:
            num_frames = sum(map(len, sound.blocks()))
        if num_frames == 0:
            raise AudioError("empty", f"{file} holds no samples")
        return max(1, round(num_frames * sampling_rate / sound.sampling_rate))


def normalize_level(audio: np.ndarray, dbfs: float) -> np.ndarray:
    """Scale (S,) to an RMS of ``dbfs``, or as close as a peak of 1.0 allows. Silence is unchanged."""
    peak = float(np.abs(audio).max())
    if peak == 0.0:
        return audio
    rms = float(np.sqrt(np.mean(np.square(audio, dtype=np.float64))))
    return audio * np.float32(min(10.0 ** (dbfs / 20.0) / rms, 1.0 / peak))


def _read_by_torchcodec(file: AudioFile | BinaryIO, name: str, error: AudioError) -> tuple[np.ndarray, int]:
    """(S, channels) float32 and the rate of a file that libsndfile rejected with ``error``."""
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
