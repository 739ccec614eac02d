"""Duplicates: what the rows before this one have already said.

Order matters (the first of its kind is kept), and memory hardly grows: 8 to 24 bytes per row, whatever the texts.
"""

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any
from zlib import crc32

import numpy as np

from nemo_desta.errors import ConfigError
from nemo_desta.recipes.gates.text import CLOSING_TAGS, answer_of, words_of
from nemo_desta.recipes.items import Verdict


@dataclass(frozen=True)
class DuplicatesConfig:
    """``exact``: the same audio with the same prompt. ``near``: an answer of at least ``min_near_words`` words nearly
    equals another one about the same clip (``min_jaccard`` of their five-word runs are shared). ``max_copies``: how
    often nearly the same long answer (at least ``min_copy_words`` words) may come in the whole corpus, 0 is no limit.
    Short answers to different clips may be equal: "The speaker is male." is often right.
    """

    exact: bool = True
    near: bool = True
    min_near_words: int = 12
    min_jaccard: float = 0.9
    max_copies: int = 100
    min_copy_words: int = 30

    def __post_init__(self) -> None:
        if not 0 < self.min_jaccard <= 1:
            raise ConfigError(f"duplicates.min_jaccard must be above 0 and at most 1, found {self.min_jaccard:g}")
        if not 0 <= self.max_copies < 65_535:
            raise ConfigError(f"duplicates.max_copies must be 0 to 65534, found {self.max_copies}")


class Duplicates:
    """Asked about every row in turn; a row that passes is remembered. Rows of one clip come one after the other."""

    def __init__(self, config: DuplicatesConfig | None = DuplicatesConfig()) -> None:
        self._config = config or DuplicatesConfig(exact=False, near=False, max_copies=0)  # None: let everything pass
        self._questions = HashSet()
        self._copies = Counts()
        self._clip: Any = None
        self._answers: list[frozenset[int]] = []  # five-word runs of the answers about this clip

    def check(self, row: Mapping[str, Any], closing_tags: tuple[str, ...] = CLOSING_TAGS) -> Verdict | None:
        """``duplicate row``, ``near duplicate``, ``too many copies``, or None: then the row counts from now on."""
        config = self._config
        audio = tuple(a.get("audio") for m in row.get("messages") or () for a in m.get("audios") or ())
        question = _hash("\0".join((*map(str, audio), " ".join(words_and_figures(row.get("prompt") or "")))))
        if config.exact and question in self._questions:
            return Verdict("duplicate row", f"{'+'.join(map(str, audio))} with {row.get('prompt')!r} came before")
        if audio != self._clip:
            self._clip, self._answers = audio, []
        words = words_of(answer_of(row["response"], closing_tags))
        runs = _runs(words, 5) if config.near and len(words) >= config.min_near_words else None
        if runs is not None and any(_alike(runs, other, config.min_jaccard) for other in self._answers):
            return Verdict("near duplicate", f"another answer about this clip reads {' '.join(words[:12])!r}")
        sketches = ()
        if config.max_copies and len(words) >= config.min_copy_words:
            sketches = _sketches(words)
            if max(map(self._copies.__getitem__, sketches)) >= config.max_copies:
                return Verdict("too many copies", f"{config.max_copies} rows begin {' '.join(words[:12])!r} or alike")
        if config.exact:
            self._questions.add(question)
        if runs is not None:
            self._answers.append(runs)
        for sketch in sketches:
            self._copies.add(sketch)
        return None


class HashSet:
    """A set of 64-bit numbers other than 0, open addressing in one flat array: 12 to 24 bytes per number."""

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * 1024))
        self._used = 0

    def __len__(self) -> int:
        return self._used

    def __contains__(self, number: int) -> bool:
        return self._slots[self._at(number)] == number

    def add(self, number: int) -> None:
        if 3 * self._used >= 2 * len(self._slots):
            self._grow()
        at = self._at(number)
        self._used += self._slots[at] == 0
        self._slots[at] = number

    def _at(self, number: int) -> int:
        """Where the number is or would be."""
        slots, mask = self._slots, len(self._slots) - 1
        at = number & mask
        while slots[at] not in (0, number):
            at = (at + 1) & mask
        return at

    def _grow(self) -> None:
        old = self._slots
        self._slots = array("Q", bytes(16 * len(old)))
        for number in old:
            if number:
                self._slots[self._at(number)] = number


class Counts:
    """How often a 64-bit number came, at least: a count-min sketch of two rows of 2^21 counters (8 MB, used page by
    page). With a million different numbers, one in about 20,000 counts higher than it should, by a few."""

    _BITS = 21

    def __init__(self) -> None:
        self._rows = np.zeros((2, 1 << self._BITS), dtype=np.uint16)

    def __getitem__(self, number: int) -> int:
        return int(min(self._rows[at] for at in self._cells(number)))

    def add(self, number: int) -> None:
        for at in self._cells(number):
            if self._rows[at] < 65_535:
                self._rows[at] += 1

    def _cells(self, number: int) -> Iterator[tuple[int, int]]:
        mask = (1 << self._BITS) - 1
        yield 0, number & mask
        yield 1, (number >> 32) & mask


def words_and_figures(text: str) -> list[str]:
    """Words in lower case with their marks taken off, so that "What is it?" and "what is it" are one prompt."""
    return [word for piece in text.lower().split() if (word := piece.strip(".,;:!?\"'()[]*_"))]


def _hash(text: str) -> int:
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


def _runs(words: list[str], length: int) -> frozenset[int]:
    """All runs of ``length`` words, as numbers."""
    return frozenset(map(hash, zip(*(words[first:] for first in range(length)), strict=False)))


def _alike(one: frozenset[int], other: frozenset[int], least: float) -> bool:
    if min(len(one), len(other)) < least * max(len(one), len(other)):
        return False
    shared = len(one & other)
    return shared >= least * (len(one) + len(other) - shared)


def _sketches(words: list[str]) -> tuple[int, int]:
    """Two hashes, of the eight smallest and the eight largest hashes of three-word runs (bottom-k min-hash). Equal
    answers share both; with one word in 36 changed, one of them still does in 7 of 10 cases; answers that share half
    of their runs do in 1 of 100."""
    codes = [crc32(word.encode("utf-8", "surrogatepass")) for word in words]
    runs = sorted(set(map(hash, zip(codes, codes[1:], codes[2:], strict=False))))
    return _hash(str(runs[:8])), _hash(str(runs[-8:]))
