"""Counters whose memory does not grow with the rows: capped tables of values, lengths, hashes of what was seen."""

from array import array
from collections import Counter
from itertools import accumulate
from typing import Any

import numpy as np


class CappedCounter:
    """Counts values, of which there may be millions: when ``limit`` is passed, those seen least are let go.

    ``total`` is exact. ``exact``: nothing was let go; otherwise rare values are missing and their counts too small.
    """

    def __init__(self, limit: int = 100_000) -> None:
        self.limit = limit
        self.total = 0
        self.exact = True
        self._counts: dict[Any, int] = {}

    def add(self, value: Any) -> None:
        self.total += 1
        counts = self._counts
        if value in counts:
            counts[value] += 1
            return
        counts[value] = 1
        if len(counts) > self.limit:
            self.exact = False
            self._counts = dict(Counter(counts).most_common(self.limit // 2))

    def most_common(self, number: int | None = None) -> dict[Any, int]:
        """Value -> count, most frequent first, the rest in the order of the values' text."""
        ranked = sorted(self._counts.items(), key=lambda item: (-item[1], str(item[0])))
        return dict(ranked[:number])

    def __len__(self) -> int:
        return len(self._counts)


class Lengths:
    """Whole numbers by how often they came; quantiles are exact."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, length: int) -> None:
        self._counts[length] += 1

    def update(self, other: "Lengths") -> None:
        self._counts.update(other._counts)

    def __len__(self) -> int:
        return sum(self._counts.values())

    def figures(self, num_bins: int = 24) -> dict[str, Any]:
        """Count, mean, quantiles, and a histogram: bin ``i`` is [edges[i], edges[i + 1]); the last bin is open.

        The bins reach to the 99th percentile, so that one huge value leaves the others visible.
        """
        total = len(self)
        if not total:
            return {"rows": 0}
        lengths = sorted(self._counts)
        reached = list(accumulate(self._counts[length] for length in lengths))
        at = {q: lengths[next(i for i, n in enumerate(reached) if n >= q / 100 * total)] for q in (5, 50, 95, 99)}
        width = _round_up(-(-(at[99] + 1 - lengths[0]) // num_bins))
        first = lengths[0] // width * width
        edges = list(range(first, max(at[99], first) + width + 1, width))
        counts = [0] * (len(edges) - 1)
        for length in lengths:
            counts[min((length - first) // width, len(counts) - 1)] += self._counts[length]
        return {
            "rows": total,
            "mean": round(sum(n * c for n, c in self._counts.items()) / total, 2),
            **{f"p{q}": at[q] for q in (5, 50, 95)},
            "max": lengths[-1],
            "histogram": {"edges": edges, "counts": counts},
        }


class Hashes:
    """What was seen, as 64-bit hashes: 8 bytes each. Two values in a million millions are taken for one."""

    def __init__(self) -> None:
        self._hashes = array("q")

    def add(self, value: Any) -> None:
        self._hashes.append(hash(value))

    def __len__(self) -> int:
        return len(self._hashes)

    @property
    def num_distinct(self) -> int:
        if not self._hashes:
            return 0
        ordered = np.sort(np.frombuffer(self._hashes, np.int64))
        return 1 + int(np.count_nonzero(ordered[1:] != ordered[:-1]))

    @property
    def num_repeated(self) -> int:
        """Values that came before, counted each time that they came again."""
        return len(self) - self.num_distinct

    def repeated(self) -> list[int]:
        """Positions of the values that came before, in order."""
        if not self._hashes:
            return []
        first = np.unique(np.frombuffer(self._hashes, np.int64), return_index=True)[1]
        again = np.ones(len(self), bool)
        again[first] = False
        return np.flatnonzero(again).tolist()


class Clips:
    """Seconds of audio over distinct files: 12 bytes per file and row."""

    def __init__(self) -> None:
        self._hashes = array("q")
        self._seconds = array("f")  # NaN = not known

    def add(self, audio: Any, seconds: float | None) -> None:
        self._hashes.append(hash(audio))
        self._seconds.append(float("nan") if seconds is None else seconds)

    def figures(self) -> dict[str, Any]:
        """Clips and hours, each file once (``hours``) and as often as rows hear it (``hours_in_rows``)."""
        if not self._hashes:
            return {"clips": 0, "hours": 0.0, "hours_in_rows": 0.0, "clips_of_unknown_length": 0}
        seconds = np.frombuffer(self._seconds, np.float32).astype(np.float64)
        first = np.unique(np.frombuffer(self._hashes, np.int64), return_index=True)[1]
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


def top(counts: Counter[str] | CappedCounter, number: int | None = None) -> dict[str, int]:
    """Most frequent first; equals in alphabetical order."""
    if isinstance(counts, CappedCounter):
        return counts.most_common(number)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:number])


def first_few(found: dict[str, list[Any]], key: str, value: Any, number: int = 5) -> None:
    """Keep the first ``number`` values under each of the first 200 keys."""
    if key not in found and len(found) >= 200:
        return
    kept = found.setdefault(key, [])
    if len(kept) < number:
        kept.append(value)
