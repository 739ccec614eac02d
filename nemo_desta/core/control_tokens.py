"""Control tokens in data: text that spells a control token is tokenised as text and never becomes that token.

A tokenizer matches a control token by its whole spelling, so a text is cut after the first character of every spelling
and the pieces are tokenised one by one. transformers' ``split_special_tokens`` does not do this for tokens that are
added but not special (``<think>`` and ``<tool_call>`` of Qwen3). A tokenizer that begins every text with a space
(Llama 2) inserts one into the spelling.
"""

import re
from collections.abc import Collection
from functools import cached_property
from typing import Any

from nemo_desta.core.think_tags import KNOWN_TAGS

THINK_TAGS = frozenset(text for tags in KNOWN_TAGS for text in (tags.open, tags.close))


class ControlTokens:
    """The control tokens of a tokenizer: special tokens, added tokens that its chat template writes, and added tokens
    of the form ``<|...|>``. Other added tokens (Gemma has white space and HTML tags among them) are ordinary text.

    ``thoughts`` in the methods: think tags may stay, as in an assistant's messages.
    """

    def __init__(self, tokenizer: Any) -> None:
        template = tokenizer.chat_template
        source = template if isinstance(template, str) else "\n".join(template.values())
        self._ids = {
            token.content: number
            for number, token in tokenizer.added_tokens_decoder.items()
            if token.special or (token.content in source and not token.content.isspace()) or _is_tag(token.content)
        } | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))

    def find(self, text: str, *, thoughts: bool = False) -> str | None:
        """The first control token that ``text`` spells."""
        found = self._patterns[thoughts].search(text)
        return found[0] if found else None

    def split(self, text: str, *, thoughts: bool = False) -> list[str]:
        """Pieces whose concatenation is ``text``; none spells a control token of two characters or more."""
        pieces, start = [], 0
        while found := self._patterns[thoughts].search(text, start):
            pieces.append(text[start : found.start() + 1])
            start = found.start() + 1
        return [*pieces, text[start:]]

    def among(self, ids: Collection[int], *, thoughts: bool = False) -> str | None:
        """A control token whose id is among ``ids``, which cutting could not prevent."""
        if self._id_sets[thoughts].isdisjoint(ids):
            return None
        return next(text for text, number in self._ids.items() if number in self._id_sets[thoughts] and number in ids)

    @cached_property
    def _patterns(self) -> dict[bool, re.Pattern[str]]:
        return {thoughts: _any_of(set(self._ids) - (THINK_TAGS if thoughts else set())) for thoughts in (False, True)}

    @cached_property
    def _id_sets(self) -> dict[bool, frozenset[int]]:
        kept = {number for text, number in self._ids.items() if text not in THINK_TAGS}
        return {False: frozenset(self._ids.values()), True: frozenset(kept)}


def _is_tag(text: str) -> bool:
    return text.startswith(("<|", "<｜")) and text.endswith(("|>", "｜>"))


def _any_of(texts: Collection[str]) -> re.Pattern[str]:
    longest_first = sorted((text for text in texts if text), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
