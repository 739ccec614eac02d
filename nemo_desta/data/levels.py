"""Samples of any number type, level and number of channels -> mono float32 in [-1, 1].

Unambiguous problems are corrected and logged with the clip's name; others are errors. Letters: S samples, C channels.
"""

import logging
import math
from collections import defaultdict

import numpy as np

from nemo_desta.data.audio_decoding import AudioError

#: Decoders of lossy formats overshoot; a peak up to this value is not changed.
PEAK = 1.05
#: Float samples with a peak up to this value are scaled to a peak of 1.0; a higher peak is an error.
LOUDEST = 4.0
#: If the mix of the channels is quieter than the loudest channel by more than this (dB), that channel is used.
MIX_LOSS_DB = 20.0

#: Clips that are named for each kind of problem.
_MOST_SAID = 10
_said: defaultdict[str, set[str]] = defaultdict(set)
logger = logging.getLogger(__name__)


def in_range(samples: np.ndarray, name: str) -> np.ndarray:
    """(S, C) of any number type -> float32 in [-1, 1].

    Integers are divided by the range of their type. 16-bit samples stored in wider integers or in floats are detected
    by their values. Floats up to `LOUDEST` are scaled to a peak of 1.0. Each of these is logged.

    Raises:
        AudioError: ``empty``; ``corrupt`` for NaN, infinity or non-numeric samples; ``level`` for a higher peak.
    """
    if samples.size == 0:
        raise AudioError("empty", f"{name} holds no samples")
    kind = samples.dtype.kind
    if kind in "iu" and not (kind == "u" and samples.dtype.itemsize > 2):
        return _from_integers(samples, name)
    if kind != "f":
        raise AudioError(
            "corrupt", f"{name} holds samples of type {samples.dtype}; floats, int8 to int64, uint8 or uint16 are read"
        )
    peak = float(np.maximum(samples.max(), -samples.min()))  # of NaN it is NaN
    if not math.isfinite(peak):
        raise AudioError("corrupt", f"{name} holds NaN or infinite samples")
    if peak <= PEAK:
        return samples.astype(np.float32, copy=False)
    if 2 < peak <= 1 << 15 and (samples == np.rint(samples)).all():
        _say(
            "whole numbers as floats",
            f"{name} holds whole numbers up to {peak:.0f} as floats: read as 16-bit samples (divided by 32768)",
        )
        return samples.astype(np.float32) / np.float32(1 << 15)
    if peak <= LOUDEST:
        _say("a peak above 1.0", f"{name} has a peak of {peak:.3g}, floats are in [-1, 1]: scaled to a peak of 1.0")
        return samples.astype(np.float32) / np.float32(peak)
    raise AudioError(
        "level",
        f"{name} has a peak of {peak:.3g}, but floats are in [-1, 1]; divide the samples by the range of the type "
        "that they came from (32768 for 16 bits)",
    )


def mixed(samples: np.ndarray, name: str) -> np.ndarray:
    """(S, C) float32 -> (S,): the mean of the channels, or the loudest where the channels cancel each other."""
    if samples.shape[1] == 1:
        return samples[:, 0] + np.float32(0.0)  # a copy, and -0.0 becomes 0.0: equal clips have equal bytes
    mix = samples.mean(axis=1)
    powers = np.einsum("sc,sc->c", samples, samples, dtype=np.float64)
    power, loudest = np.einsum("s,s->", mix, mix, dtype=np.float64), int(powers.argmax())
    if powers[loudest] <= power * 10 ** (MIX_LOSS_DB / 10):
        return mix
    loss = 10 * math.log10(powers[loudest] / power) if power else math.inf
    _say(
        "channels that cancel each other",
        f"{name}: the mix of its {samples.shape[1]} channels is {loss:.0f} dB below channel {loudest + 1} (they "
        f"cancel each other): channel {loudest + 1} is used alone",
    )
    return np.ascontiguousarray(samples[:, loudest])


def _from_integers(samples: np.ndarray, name: str) -> np.ndarray:
    bits = 8 * samples.dtype.itemsize
    middle = 0 if samples.dtype.kind == "i" else 1 << (bits - 1)
    if bits <= 16:
        return (samples.astype(np.float32) - np.float32(middle)) / np.float32(1 << (bits - 1))
    peak = max(int(samples.max()), -int(samples.min()))
    held = next(width for width in (16, 32, 64) if width == bits or peak <= 1 << (width - 1))
    if held < bits and peak:
        _say(
            "narrow samples in a wide type",
            f"{name} holds {samples.dtype} samples up to {peak}: read as {held}-bit samples",
        )
    elif held > 16 and peak <= 1 << 23:
        level = 20 * math.log10(peak / (1 << 31))
        _say(
            "a very low level",
            f"{name} holds {samples.dtype} samples up to {peak}, {level:.0f} dB; divide 24-bit samples by 8388608",
        )
    return (samples / float(1 << (held - 1))).astype(np.float32)


def _say(kind: str, message: str) -> None:
    """Log a message once, for a limited number of clips of each kind."""
    said = _said[kind]
    if message in said or len(said) == _MOST_SAID:
        return
    said.add(message)
    logger.warning(message)
    if len(said) == _MOST_SAID:
        logger.warning("%d clips with %s were named; further ones are corrected silently", _MOST_SAID, kind)
