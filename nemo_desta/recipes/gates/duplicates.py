"""Rejects rows that repeat an earlier row: same audio and prompt, or nearly the same answer.

The first row of its kind is kept. Memory grows by 8 to 24 bytes per row, however long the texts are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from nemo_desta.errors import ConfigError
from nemo_desta.recipes.gates.text import CLOSING_TAGS, answer_of, words_of
from nemo_desta.recipes.hashes import HashCounts, HashSet, hash64
from nemo_desta.recipes.items import Rejection


@dataclass(frozen=True)
class DuplicatesConfig:
    """``exact`` rejects the same audio with the same prompt. ``near`` rejects an answer of at least ``min_near_words``
    words if another answer about the same clip shares ``min_jaccard`` of its five-word runs. ``max_copies``: how often
    nearly the same long answer (at least ``min_copy_words`` words) may be in the whole corpus; 0 is no limit.
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
    """Checks every row in turn and remembers the rows that pass. The rows of one clip must follow each other."""

    def __init__(self, config: DuplicatesConfig | None = DuplicatesConfig()) -> None:
        self._config = config or DuplicatesConfig(exact=False, near=False, max_copies=0)  # None: every row passes
        self._questions = HashSet()
        self._copies = HashCounts()
        self._clip: Any = None
        self._answers: list[frozenset[int]] = []  # five-word runs of the answers about this clip

    def check(self, row: Mapping[str, Any], closing_tags: tuple[str, ...] = CLOSING_TAGS) -> Rejection | None:
        """``duplicate row``, ``near duplicate``, ``too many copies``, or None.

        Later rows are compared with a row that passes.
        """
        config = self._config
        audio = tuple(a.get("audio") for m in row.get("messages") or () for a in m.get("audios") or ())
        question = hash64("\0".join((*map(str, audio), " ".join(plain_words(row.get("prompt") or "")))))
        if config.exact and question in self._questions:
            return Rejection("duplicate row", f"{'+'.join(map(str, audio))} with {row.get('prompt')!r} came before")
        if audio != self._clip:
            self._clip, self._answers = audio, []
        words = words_of(answer_of(row["response"], closing_tags))
        runs = None
        if config.near and len(words) >= config.min_near_words:
            runs = frozenset(map(hash, zip(*(words[first:] for first in range(5)), strict=False)))
        if runs is not None and any(_alike(runs, other, config.min_jaccard) for other in self._answers):
            return Rejection("near duplicate", f"another answer about this clip reads {' '.join(words[:12])!r}")
        sketches = ()
        if config.max_copies and len(words) >= config.min_copy_words:
            sketches = _sketches(words)
            if max(map(self._copies.__getitem__, sketches)) >= config.max_copies:
                return Rejection(
                    "too many copies", f"{config.max_copies} rows begin {' '.join(words[:12])!r} or alike"
                )
        if config.exact:
            self._questions.add(question)
        if runs is not None:
            self._answers.append(runs)
        for sketch in sketches:
            self._copies.add(sketch)
        return None


def plain_words(text: str) -> list[str]:
    """Words in lower case without punctuation, so that "What is it?" and "what is it" are one prompt."""
    return [word for piece in text.lower().split() if (word := piece.strip(".,;:!?\"'()[]*_"))]


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
    return hash64(str(runs[:8])), hash64(str(runs[-8:]))
