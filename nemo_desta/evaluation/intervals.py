"""Confidence intervals of scores: percentile bootstrap over items."""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000


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
