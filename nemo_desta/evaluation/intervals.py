"""Confidence intervals of 95 %: Wilson's for shares, percentile bootstrap over items for other means."""

from collections.abc import Sequence
from math import sqrt

import numpy as np

RESAMPLES = 2000
_Z = 1.959964  # two-sided 95 %


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Of a share; it stays valid near 0 and 1. It treats items as independent, which clips of one speaker are not."""
    n, p = total, correct / total
    middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap_interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of ``values`` (one per counted item; 0 and 1 for verdicts).

    Items are treated as independent. If all values are equal, both ends are that value.

    Raises:
        ValueError: no value.
    """
    if not len(values):
        raise ValueError("no values: an interval needs at least one")
    numbers = np.asarray(values, dtype=np.float64)
    if (numbers == numbers[0]).all():
        return float(numbers[0]), float(numbers[0])
    rng = np.random.default_rng(seed)
    if set(np.unique(numbers)) <= {0.0, 1.0}:  # resampled verdicts are binomial draws
        means = rng.binomial(len(numbers), numbers.mean(), RESAMPLES) / len(numbers)
    else:
        means = np.array([rng.choice(numbers, len(numbers)).mean() for _ in range(RESAMPLES)])
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def paired_difference(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> tuple[float, float, float]:
    """Mean of ``first - second`` item by item, and its 95 % interval."""
    if len(first) != len(second):
        raise ValueError(f"{len(first)} values against {len(second)}; pairs are needed")
    differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    return float(differences.mean()), *bootstrap_interval(differences, seed=seed)
