"""Sets, lists and counts of 64-bit hashes: millions of rows are compared in a few bytes of memory per row."""

from array import array
from hashlib import blake2b
from typing import Any

import numpy as np


def hash64(text: str) -> int:
    """A hash of ``text``, from 0 to 2^64 - 1, that is the same in every process."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class HashSet:
    """A set of 64-bit numbers in about 16 bytes each: a sorted array, and a set of the newest numbers."""

    def __init__(self) -> None:
        self._sorted = np.zeros(0, dtype=np.uint64)
        self._new: set[int] = set()

    def __len__(self) -> int:
        return len(self._sorted) + len(self._new)

    def __contains__(self, number: int) -> bool:
        at = int(np.searchsorted(self._sorted, np.uint64(number)))
        return number in self._new or (at < len(self._sorted) and int(self._sorted[at]) == number)

    def add(self, number: int) -> None:
        if number in self:
            return
        self._new.add(number)
        if len(self._new) > max(64, len(self._sorted) // 8):
            new = np.array(sorted(self._new), dtype=np.uint64)
            self._sorted = np.insert(self._sorted, np.searchsorted(self._sorted, new), new)
            self._new.clear()


class HashList:
    """The hashes of values in their order, 8 bytes each. Two of a million different values are equal with a
    probability of about 1 in 37 million."""

    def __init__(self) -> None:
        self._hashes = array("q")

    def __len__(self) -> int:
        return len(self._hashes)

    def append(self, value: Any) -> None:
        self._hashes.append(hash(value))

    def firsts(self) -> np.ndarray:
        """(len,): for each position, the first position that holds the same value."""
        _, first, inverse = np.unique(np.asarray(self._hashes), return_index=True, return_inverse=True)
        return first[inverse.reshape(-1)]

    @property
    def num_repeated(self) -> int:
        """How many values have come before."""
        return int(np.count_nonzero(self.firsts() != np.arange(len(self))))

    @property
    def num_distinct(self) -> int:
        return len(self) - self.num_repeated


class HashCounts:
    """Upper bounds of how often each 64-bit number was added: a count-min sketch of two rows of 2^21 counters (8 MB).

    With a million different numbers, about one in 20,000 bounds is too high, by a few.
    """

    _BITS = 21

    def __init__(self) -> None:
        self._rows = np.zeros((2, 1 << self._BITS), dtype=np.uint16)

    def __getitem__(self, number: int) -> int:
        return int(min(self._rows[at] for at in self._cells(number)))

    def add(self, number: int) -> None:
        for at in self._cells(number):
            if self._rows[at] < 65_535:
                self._rows[at] += 1

    def _cells(self, number: int) -> tuple[tuple[int, int], tuple[int, int]]:
        mask = (1 << self._BITS) - 1
        return (0, number & mask), (1, (number >> 32) & mask)
