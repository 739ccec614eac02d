"""Measures of a clip that any listener can hear: pitch, loudness, speaking rate, noise, silence.

Pitch and the intensity of syllables come from Praat (praat-parselmouth), loudness from pyloudnorm (ITU-R BS.1770-4).
Letters: S samples, N frames of 25 ms, 100 a second.
"""

import re
from collections.abc import Collection
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

#: Silence: frames this far below the loudest frame, for at least 0.1 s. Praat's defaults.
_SILENCE_DB, _SILENCE_FRAMES = 25.0, 10
#: A clip below this level (dB full scale, RMS) is inaudible.
_NOTHING_DBFS = -80.0
_MOST_SNR_DB = 60.0
#: Minimum number of voiced frames of 10 ms, and minimum share of all frames, for a pitch.
_LEAST_VOICED, _LEAST_VOICED_SHARE = 5, 0.08

_VOWELS = re.compile(r"[aeiouyàáâãäåæèéêëìíîïòóôõöøùúûüýÿāēīōūąęıőűœаеёиоуыэюяіїєαεηιουωάέήίόύώ]+", re.IGNORECASE)
#: Each of these letters is one syllable: kana, Han, Hangul. A digit has one or two.
_SYLLABLE_LETTERS = re.compile(r"[0-9\u3041-\u30ff\u3400-\u9fff\uac00-\ud7af]")


class Measurements(NamedTuple):
    """A value is None if it was not requested or cannot be measured.

    ``pitch``: median fundamental frequency, Hz. ``volume``: integrated loudness, LUFS. ``speaking_speed``: syllables
    per second of speech without pauses. ``noise_level``: level of the loud part above the noise floor, dB (an
    estimate of the SNR, at most 60; higher is cleaner). ``silence``: share of the clip, 0 to 1.
    """

    pitch: float | None = None
    volume: float | None = None
    speaking_speed: float | None = None
    noise_level: float | None = None
    silence: float | None = None


MEASURES = Measurements._fields


def measure(
    audio: np.ndarray, sampling_rate: int, transcript: str | None = None, *, names: Collection[str] = MEASURES
) -> Measurements:
    """Measure one clip.

    Args:
        audio: (S,), floats between -1 and 1.
        transcript: the spoken words; without it, syllables are counted in the audio.
        names: the measures to compute, of `MEASURES`.

    Raises:
        ValueError: ``audio`` is not (S,), not finite, or a name is unknown.
        ImportError: praat-parselmouth or pyloudnorm is needed and missing.
    """
    audio = np.asarray(audio, dtype=np.float64)
    if audio.ndim != 1 or not np.isfinite(audio).all():
        raise ValueError(f"audio must be finite samples of shape (S,), found shape {audio.shape}; mix channels first")
    if unknown := [name for name in names if name not in MEASURES]:
        raise ValueError(f"{unknown[0]!r} cannot be measured; there is {', '.join(MEASURES)}")
    levels = _levels(audio, sampling_rate)  # (N,)
    if len(levels) == 0:
        return Measurements()
    if levels.max() < _NOTHING_DBFS:
        return Measurements(silence=1.0 if "silence" in names else None)
    silence = _silence(levels)
    pitch = _pitch(audio, sampling_rate) if {"pitch", "speaking_speed"} & set(names) else None
    found = {
        "pitch": lambda: None if pitch is None else float(np.median(_voiced(pitch))),
        "volume": lambda: _loudness(audio, sampling_rate),
        "speaking_speed": lambda: _rate(audio, sampling_rate, transcript, silence, pitch),
        "noise_level": lambda: _snr(levels),
        "silence": lambda: silence,
    }
    return Measurements(**{name: found[name]() for name in names})


def syllables(text: str) -> int:
    """Approximate number of syllables: groups of vowels, and letters that are syllables; 0 in a script with neither
    (Arabic, Hebrew)."""
    return len(_VOWELS.findall(text)) + len(_SYLLABLE_LETTERS.findall(text))


def _levels(audio: np.ndarray, sampling_rate: int) -> np.ndarray:
    """RMS of each frame in dB full scale, (S,) -> (N,); one frame if the clip is shorter."""
    if len(audio) == 0:
        return np.zeros(0)
    length = min(len(audio), max(1, round(0.025 * sampling_rate)))
    starts = np.arange(0, len(audio) - length + 1, max(1, round(0.01 * sampling_rate)))
    energy = np.concatenate(([0.0], np.cumsum(audio * audio)))
    power = (energy[starts + length] - energy[starts]) / length
    return 10 * np.log10(np.maximum(power, 1e-15))


def _silence(levels: np.ndarray) -> float:
    quiet = levels < max(levels.max() - _SILENCE_DB, _NOTHING_DBFS)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], quiet, [False]))))
    runs = edges[1::2] - edges[::2]
    return float(runs[runs >= _SILENCE_FRAMES].sum() / len(levels))


def _snr(levels: np.ndarray) -> float | None:
    """Signal over noise floor. The floor is the mean power of the quietest tenth of the frames; the signal is the mean
    power above it of the frames that exceed it by 3 dB. None: too few such frames, or a clip shorter than 0.2 s.
    Frames of zeros are left out."""
    power = 10 ** (np.sort(levels[levels > -110]) / 10)
    if len(power) < 20:
        return None
    floor = power[: len(power) // 10].mean()
    loud = power[power > 2 * floor]
    if len(loud) < max(5, 0.05 * len(power)):
        return None
    return float(min(10 * np.log10(loud.mean() / floor - 1), _MOST_SNR_DB))


def _loudness(audio: np.ndarray, sampling_rate: int) -> float | None:
    """A clip shorter than a gating block of 0.4 s is repeated until it fills one."""
    block = int(0.4 * sampling_rate) + 1
    if len(audio) < block:
        audio = np.resize(audio, block)
    loudness = float(_meter(sampling_rate).integrated_loudness(audio))
    return loudness if np.isfinite(loudness) else None


@lru_cache(maxsize=8)
def _meter(sampling_rate: int) -> Any:
    try:
        import pyloudnorm
    except ImportError as error:
        raise ImportError("measuring volume needs pyloudnorm: pip install 'nemo_desta[measure]'") from error
    return pyloudnorm.Meter(sampling_rate)


def _sound(audio: np.ndarray, sampling_rate: int) -> Any:
    try:
        import parselmouth
    except ImportError as error:
        raise ImportError(
            "measuring pitch and speaking speed needs praat-parselmouth: pip install 'nemo_desta[measure]'"
        ) from error
    return parselmouth.Sound(audio, sampling_frequency=sampling_rate)


def _pitch(audio: np.ndarray, sampling_rate: int) -> Any | None:
    """Praat's pitch object, in two passes: the second searches near the result of the first (De Looze and Hirst 2008),
    which avoids octave errors. None: too short, or no voice."""
    sound = _sound(audio, sampling_rate)
    shortest = 3.1 / sound.duration  # Praat needs three periods of the lowest pitch
    floor, ceiling = 75.0, 600.0
    for _ in range(2):
        if floor < shortest or ceiling <= floor:
            return None
        pitch = sound.to_pitch_ac(time_step=0.01, pitch_floor=floor, pitch_ceiling=min(ceiling, sampling_rate / 2.2))
        voiced = _voiced(pitch)
        if len(voiced) < max(_LEAST_VOICED, _LEAST_VOICED_SHARE * pitch.get_number_of_frames()):
            return None
        low, high = np.quantile(voiced, (0.25, 0.75))
        floor, ceiling = max(50.0, shortest, 0.75 * low), min(1000.0, 2.0 * high)
    return pitch


def _voiced(pitch: Any) -> np.ndarray:
    frequency = pitch.selected_array["frequency"]
    return frequency[frequency > 0]


def _rate(
    audio: np.ndarray, sampling_rate: int, transcript: str | None, silence: float, pitch: Any | None
) -> float | None:
    seconds = len(audio) / sampling_rate * (1 - silence)
    count = syllables(transcript or "") or _nuclei(audio, sampling_rate, pitch)
    return count / seconds if count and seconds > 0 else None


def _nuclei(audio: np.ndarray, sampling_rate: int, pitch: Any | None) -> int:
    """Syllables in the audio: voiced peaks of the intensity with a prominence of 2 dB that are at most 25 dB below the
    loudest (after De Jong and Wempe 2009)."""
    from scipy.signal import find_peaks

    sound = _sound(audio, sampling_rate)
    if pitch is None or sound.duration <= 6.5 / 50:
        return 0
    intensity = sound.to_intensity(minimum_pitch=50.0, time_step=0.01)
    values = intensity.values[0]
    peaks, _ = find_peaks(values, height=np.quantile(values, 0.99) - _SILENCE_DB, prominence=2.0)
    return sum(pitch.get_value_at_time(intensity.xs()[peak]) > 0 for peak in peaks)
