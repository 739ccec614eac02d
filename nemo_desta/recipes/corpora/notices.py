"""Warnings about a corpus' files: logged once per file, with the first row, and counted."""

import logging
from collections import Counter

logger = logging.getLogger(__name__)

#: Limit of different notices per corpus, so that a file of random keys cannot fill the memory.
MOST = 1000


class Notices:
    """``counts``: (file, what) -> rows, of the current or last reading."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._said: set[tuple[str, str]] = set()
        self._summed = False

    def start(self) -> None:
        """A new reading of the corpus."""
        self.counts.clear()

    def add(self, where: str, what: str) -> None:
        """``where``: ``file:row``."""
        key = (where.rpartition(":")[0], what)
        if key not in self.counts and len(self.counts) >= MOST:
            return
        self.counts[key] += 1
        if key not in self._said and len(self._said) < MOST:
            self._said.add(key)
            logger.warning("%s: %s", where, what)

    def end(self) -> None:
        """The whole corpus was read: log each count, after the first reading only."""
        if not self._summed:
            for (file, what), count in self.counts.items():
                logger.warning("%s: %s: %d rows", file, what, count)
        self._summed = True
