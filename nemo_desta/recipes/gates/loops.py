"""Rejects repetition loops: an LLM that generates the same text again and again, at the end or in the middle.

A loop is a run of words that repeats with a fixed period and is longer than lists, refrains and laughter are. Counting
n-grams clears nearly every text; only the others are searched period by period.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nemo_desta.recipes.gates.text import Seen, words_of
from nemo_desta.recipes.items import Rejection
from nemo_desta.recipes.unicode_scripts import SCRIPTS

#: Longer strings of letters are not words ("hahaha...").
_LONGEST_WORD = 40
#: Scripts without spaces between words.
_NO_SPACES = re.compile(
    "[" + "".join(SCRIPTS[name] for name in ("Thai", "Lao, Tibetan or Burmese", "Khmer", "Kana", "Han")) + "]"
)
#: Characters that draw lines and tables.
_DRAWING = frozenset("-=_*~#|:+ ")
#: Loops of a longer period are found by the share of different runs only.
_LONGEST_PERIOD = 300


@dataclass(frozen=True)
class LoopGate:
    """``words``, ``characters``: minimum length of a run that repeats one unit at least ``repeats`` times. So one word
    is a loop from 24 times on, a phrase of six words from 4 times on. ``min_distinct``: minimum share of different
    four-word runs in a text of 100 words or more, which catches loops with variations.
    """

    words: int = 24
    characters: int = 90
    repeats: int = 3
    min_distinct: float = 0.3

    def __call__(self, seen: Seen) -> Rejection | None:
        words = words_of(seen.response) if seen.thinks else seen.words
        return self._in_words(words) or self._in_characters(seen.response, words)

    def _in_words(self, words: Sequence[str]) -> Rejection | None:
        if len(words) - len(set(words)) < self.words * (1 - 1 / self.repeats):  # fewer than the shortest loop repeats
            return None
        total = len(words) - 3
        again = total - len(set(zip(words, words[1:], words[2:], words[3:], strict=False)))
        if again < self.words * (1 - 1 / self.repeats) - 3:  # the same for runs of four words
            return None
        numbers: dict[str, int] = {}
        codes = np.array([numbers.setdefault(word, len(numbers)) for word in words], dtype=np.int32)
        if found := _loop(codes, self.words, self.repeats):
            first, period, times = found
            return Rejection("repetition loop", f"{times} times {' '.join(words[first : first + period])[:100]!r}")
        if total >= 97 and total - again < self.min_distinct * total:
            share = (total - again) / total
            return Rejection("repetition loop", f"only {share:.0%} of its four-word runs are different")
        return None

    def _in_characters(self, text: str, words: Sequence[str]) -> Rejection | None:
        """The same for what words do not show: marks, figures, and scripts without spaces."""
        others = len(text) - sum(map(len, words)) - len(words)
        spaced = not words or (
            max(map(len, words)) <= _LONGEST_WORD and (text.isascii() or not _NO_SPACES.search(text))
        )
        if others < self.characters and spaced:
            return None
        grams = len(text) - 7
        again = grams - len({text[at : at + 8] for at in range(grams)})
        if again < self.characters * (1 - 1 / self.repeats) - 7:
            return None
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        found = _loop(codes, self.characters, self.repeats, skip=_DRAWING)
        if found is None:
            return None
        first, period, times = found
        return Rejection("repetition loop", f"{times} times {text[first : first + period][:100]!r}")


def _loop(
    codes: np.ndarray, length: int, repeats: int, skip: frozenset[str] = frozenset()
) -> tuple[int, int, int] | None:
    """(first, period, times) of the first run of at least ``length`` ``codes`` that repeats a unit of ``period`` codes
    at least ``repeats`` times; short periods are tried first."""
    for period in range(1, min(len(codes) // repeats, _LONGEST_PERIOD) + 1):
        same = codes[period:] == codes[:-period]
        edges = np.flatnonzero(np.diff(np.concatenate(([False], same, [False]))))  # starts and ends of runs, in turn
        runs = edges[1::2] - edges[::2] + period
        for run in np.flatnonzero(runs >= max(length, repeats * period)):
            first = int(edges[2 * run])
            unit = codes[first : first + period]
            if not skip or not skip.issuperset(map(chr, unit)):
                return first, period, int(runs[run]) // period
    return None
