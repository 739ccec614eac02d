"""How far chance alone can move a score: percentile bootstrap over items."""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000


def bootstrap_interval(values: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % interval of the mean of ``values`` (one per counted item; 0 and 1 for verdicts).

    Items count as independent. Values of one kind, or none, have no interval: both ends are their mean.

    Raises:
        ValueError: no value.
    """
    if not len(values):
        raise ValueError("no value, so no interval")
    numbers = np.asarray(values, dtype=np.float64)
    if (numbers == numbers[0]).all():
        return float(numbers[0]), float(numbers[0])
    rng = np.random.default_rng(seed)
    if set(np.unique(numbers)) <= {0.0, 1.0}:  # resampled verdicts are binomial draws
        means = rng.binomial(len(numbers), numbers.mean(), resamples) / len(numbers)
    else:
        means = np.array([rng.choice(numbers, len(numbers)).mean() for _ in range(resamples)])
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def paired_difference(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> tuple[float, float, float]:
    """Mean of ``first - second`` item by item, and its 95 % interval."""
    if len(first) != len(second):
        raise ValueError(f"{len(first)} values against {len(second)}; pairs are needed")
    differences = [a - b for a, b in zip(first, second, strict=True)]
    numbers = np.asarray(differences)
    low, high = bootstrap_interval(differences, seed=seed)
    return float(numbers.mean()), low, high
