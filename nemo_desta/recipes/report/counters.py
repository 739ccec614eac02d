"""Counters whose memory is bounded or grows by a few bytes per row."""

from array import array
from collections import Counter
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import numpy as np

from nemo_desta.recipes.hashes import HashList


class CappedCounter:
    """Counts values. When more than ``limit`` different values are there, it drops the rarer half.

    ``total`` is exact. ``exact`` is False once values were dropped: rare values are then missing or counted too low.
    """

    def __init__(self, limit: int = 100_000) -> None:
        self.limit = limit
        self.total = 0
        self.exact = True
        self._counts: Counter[Any] = Counter()

    def add(self, value: Any) -> None:
        self.total += 1
        self._counts[value] += 1
        if len(self._counts) > self.limit:
            self.exact = False
            self._counts = Counter(dict(self._counts.most_common(self.limit // 2)))

    def most_common(self, number: int | None = None) -> dict[Any, int]:
        return top(self._counts, number)

    def __len__(self) -> int:
        return len(self._counts)


class Lengths(Counter[int]):
    """Counts of whole numbers; quantiles are exact."""

    def to_json(self, num_bins: int = 24) -> dict[str, Any]:
        """Count, mean, quantiles, and a histogram: bin ``i`` is [edges[i], edges[i + 1]); the last bin is open. The
        bins end at the 99th percentile, so that one huge value does not hide the others."""
        total = self.total()
        if not total:
            return {"rows": 0}
        lengths = sorted(self)
        reached = list(accumulate(self[length] for length in lengths))
        at = {q: lengths[next(i for i, n in enumerate(reached) if n >= q / 100 * total)] for q in (5, 50, 95, 99)}
        width = _round_up(-(-(at[99] + 1 - lengths[0]) // num_bins))
        first = lengths[0] // width * width
        edges = list(range(first, max(at[99], first) + width + 1, width))
        counts = [0] * (len(edges) - 1)
        for length in lengths:
            counts[min((length - first) // width, len(counts) - 1)] += self[length]
        return {
            "rows": total,
            "mean": round(sum(n * c for n, c in self.items()) / total, 2),
            **{f"p{q}": at[q] for q in (5, 50, 95)},
            "max": lengths[-1],
            "histogram": {"edges": edges, "counts": counts},
        }


class Clips:
    """Seconds of audio over distinct files: 12 bytes per file and row."""

    def __init__(self) -> None:
        self._files = HashList()
        self._seconds = array("f")  # NaN = not known

    def add(self, audio: Any, seconds: float | None) -> None:
        self._files.append(audio)
        self._seconds.append(float("nan") if seconds is None else seconds)

    def to_json(self) -> dict[str, Any]:
        """Clips and hours: ``hours`` counts each file once, ``hours_in_rows`` once for every row that has it."""
        seconds = np.array(self._seconds, dtype=np.float64)
        first = np.unique(self._files.firsts())
        return {
            "clips": len(first),
            "hours": round(float(np.nansum(seconds[first])) / 3600, 4),
            "hours_in_rows": round(float(np.nansum(seconds)) / 3600, 4),
            "clips_of_unknown_length": int(np.isnan(seconds[first]).sum()),
        }


def _round_up(width: int) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ..."""
    size = 10 ** (len(str(max(width, 1))) - 1)
    return next(step * size for step in (1, 2, 5, 10) if step * size >= width)


def top(counts: Mapping[Any, int], number: int | None = None) -> dict[Any, int]:
    """Value -> count, most frequent first; equal counts in the order of the values' text."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))[:number])


class Reasons:
    """Counts reasons; ``examples`` holds the first five examples of each of the first 200 reasons."""

    def __init__(self) -> None:
        self.counts = CappedCounter(2000)
        self.examples: dict[str, list[Any]] = {}

    def add(self, reason: str, example: Any) -> None:
        self.counts.add(reason)
        if reason not in self.examples and len(self.examples) >= 200:
            return
        if len(kept := self.examples.setdefault(reason, [])) < 5:
            kept.append(example)
