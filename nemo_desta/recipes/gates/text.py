"""The view of a row that gates get, and the gates that need the text only: empty, not text, truncated, lengths."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nemo_desta.core.think_tags import CLOSING_TAGS, split_thought
from nemo_desta.recipes.items import Rejection
from nemo_desta.recipes.languages import ENGLISH, Language

#: Letters only. Without list numbers and punctuation, "1. Rain. 2. Rain." is a repetition.
_WORD = re.compile(r"[^\W\d_]+")

# Control characters other than tab, line feed and carriage return; surrogates; private use; the replacement
# character; noncharacters.
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ue000-\uf8ff\ufffd-\uffff]")
_SPECIAL_TOKEN = re.compile(r"<\|[A-Za-z0-9_/ -]{1,40}\|>|\[/?INST\]")


def answer_of(text: str, closing_tags: Sequence[str] = CLOSING_TAGS) -> str:
    """The text after the last closing think tag. Without such a tag it is the whole text, even of a cut thought."""
    return split_thought(text, closing_tags).answer


class Seen:
    """The fields of a row that gates read; values that several gates need are computed once.

    ``response``: the target with its think block. ``answer``: the text after the think block. ``transcripts``: those
    of all audios. ``clip``: the manifest row, empty when it is not known. ``language``: that the row is written in.
    """

    def __init__(
        self,
        row: Mapping[str, Any],
        clip: Mapping[str, Any] | None = None,
        closing_tags: Sequence[str] = CLOSING_TAGS,
        language: Language = ENGLISH,
    ) -> None:
        self.row = row
        self.language = language
        self.clip = clip or {}
        self.response: str = row["response"]
        self.prompt: str = row.get("prompt") or ""
        self.truncated = bool(row.get("truncated"))
        self.answer = answer_of(self.response, closing_tags)

    @cached_property
    def lower(self) -> str:
        """The answer in lower case with straight apostrophes."""
        return self.answer.lower().replace("\u2019", "'")

    @cached_property
    def words(self) -> list[str]:
        """The answer's runs of letters, in lower case."""
        return _WORD.findall(self.lower)

    @cached_property
    def different_words(self) -> frozenset[str]:
        return frozenset(self.words)

    @property
    def transcripts(self) -> str:
        audios = [audio for message in self.row.get("messages") or () for audio in message.get("audios") or ()]
        return " ".join(audio["text"] for audio in audios if audio.get("text"))

    @property
    def thinks(self) -> bool:
        """Whether a closed think block precedes the answer."""
        return len(self.answer) < len(self.response.strip())


def words_of(text: str) -> list[str]:
    """Runs of letters in lower case, as `Seen.words`."""
    return _WORD.findall(text.lower().replace("\u2019", "'"))


def empty(seen: Seen) -> Rejection | None:
    """Rejects an empty response or answer. A row that was truncated after its think block is kept."""
    if not seen.response.strip():
        return Rejection("empty", "the response is empty")
    if not seen.answer and not seen.truncated:
        return Rejection("empty", "no answer after the think block")
    return None


def not_text(seen: Seen) -> Rejection | None:
    """Rejects control characters, half surrogates and the like, and special tokens of a chat template."""
    plain = seen.response.replace("\n", "").isprintable() and "\ufffd" not in seen.response  # true for nearly all
    if not plain and (found := _NOT_TEXT.search(seen.response)):
        at = found.start()
        return Rejection("not text", f"character U+{ord(found[0]):04X} at {at}, after {seen.response[:at][-20:]!r}")
    if ("<|" in seen.response or "INST]" in seen.response) and (found := _SPECIAL_TOKEN.search(seen.response)):
        return Rejection("not text", f"special token {found[0]!r}")
    return None


def truncated(seen: Seen) -> Rejection | None:
    """Rejects a response that the token limit cut."""
    if seen.truncated:
        return Rejection("truncated", f"cut off after {seen.response[-40:]!r}")
    return None


@dataclass(frozen=True)
class Limits:
    """Inclusive bounds; None is no bound. Words are separated by white space."""

    min_words: int | None = None
    max_words: int | None = None
    min_characters: int | None = None
    max_characters: int | None = None

    def problem(self, text: str) -> tuple[str, str] | None:
        """("too short" or "too long", found and expected size), or None."""
        sizes = [("characters", len(text), self.min_characters, self.max_characters)]
        if self.min_words is not None or self.max_words is not None:
            sizes.append(("words", len(text.split()), self.min_words, self.max_words))
        for unit, size, least, most in sizes:
            if least is not None and size < least:
                return "too short", f"{size} {unit}, expected at least {least}"
            if most is not None and size > most:
                return "too long", f"{size} {unit}, expected at most {most}"
        return None


@dataclass(frozen=True)
class LengthGate:
    """``answer``: bounds of the answer after the think block; ``response``: bounds of the whole target.

    ALARM keeps answers of 100 to 612 tokens. A truncated row is never too short: it may end before its answer.
    """

    answer: Limits = Limits(max_characters=20_000)
    response: Limits = Limits(max_characters=100_000)

    def __call__(self, seen: Seen) -> Rejection | None:
        for what, limits, text in (("answer", self.answer, seen.answer), ("response", self.response, seen.response)):
            problem = limits.problem(text)
            if problem and not (problem[0] == "too short" and seen.truncated):
                return Rejection(problem[0], f"{what}: {problem[1]}")
        return None
