"""Resampling with a windowed sinc. A clip's result does not depend on other clips or padding of its batch.

Letters: B clips, S samples before, R samples after.
"""

import math
from collections.abc import Iterable
from functools import lru_cache

import torch
import torch.nn.functional as F

from nemo_desta.types import Rates

ZERO_CROSSINGS = 32  # of the sinc on each side: a steep and quiet filter (stop band beyond 90 dB)
ROLL_OFF = 0.95  # of the lower of the two Nyquist frequencies
KAISER_BETA = 10.0


def rates_below(sampling_rate: int, rates: Iterable[int]) -> Rates:
    """What clips are read at for encoders of ``rates``: ``sampling_rate``, and each lower one from the file too."""
    lower = sorted({rate for rate in rates if rate < sampling_rate}, reverse=True)
    return (sampling_rate, *lower) if lower else sampling_rate


def resampled_length(num_samples: int, old_rate: int, new_rate: int) -> int:
    """Samples of a clip after `resample`."""
    return -(-num_samples * new_rate // old_rate)


def resample(audio: torch.Tensor, old_rate: int, new_rate: int) -> torch.Tensor:
    """audio: (B, S) float32, zero beyond each clip's own samples -> (B, R), R = ceil(S * new_rate / old_rate)."""
    if old_rate == new_rate:
        return audio
    divisor = math.gcd(old_rate, new_rate)
    stride, phases = old_rate // divisor, new_rate // divisor
    kernel, reach = _kernel(stride, phases)
    padded = F.pad(audio[:, None], (reach, reach + stride))
    filtered = F.conv1d(padded, kernel.to(audio), stride=stride)  # (B, phases, blocks of stride samples)
    return filtered.transpose(1, 2).flatten(1)[:, : resampled_length(audio.shape[1], old_rate, new_rate)]


@lru_cache
def _kernel(stride: int, phases: int) -> tuple[torch.Tensor, int]:
    """(phases, 1, 2 * reach + stride) filters, one per output sample of a block, and how far they reach."""
    cutoff = ROLL_OFF * min(1.0, phases / stride)  # relative to the old Nyquist frequency
    half_width = ZERO_CROSSINGS / cutoff
    reach = math.ceil(half_width)
    place = torch.arange(-reach, reach + stride, dtype=torch.float64, device="cpu")
    moment = torch.arange(phases, dtype=torch.float64, device="cpu") * (stride / phases)
    distance = place[None] - moment[:, None]
    inside = (1 - (distance / half_width).square()).clamp(min=0)
    window = torch.i0(KAISER_BETA * inside.sqrt()) / torch.i0(torch.tensor(KAISER_BETA, dtype=torch.float64))
    kernel = cutoff * torch.sinc(cutoff * distance) * window * (inside > 0)
    return kernel.float()[:, None], reach
