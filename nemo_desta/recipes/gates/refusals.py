"""Rejects refusals and assistant talk: the LLM says that it cannot hear, got no audio, or will not help; or it speaks
of itself ("I'm ready to help. What's your question?") instead of answering.

Searched are the phrases of the row's language, of English, in which LLMs refuse in any language, and own patterns.

Not a refusal: there is no speech, something cannot be determined, or a character is sorry.
"""

import re
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from nemo_desta.errors import ConfigError
from nemo_desta.recipes.gates.leak_lexicon import language_lexicon
from nemo_desta.recipes.gates.quotations import QUOTED_ANY, without_quotations
from nemo_desta.recipes.gates.text import Seen
from nemo_desta.recipes.items import Rejection
from nemo_desta.recipes.languages import ENGLISH, Language

#: Kinds of prompts whose answer may be what an assistant says.
_MAY_TALK = frozenset({"role_play", "create", "continue"})


@dataclass(frozen=True)
class RefusalGate:
    """``extra``: more regular expressions, which are searched in the lower-case answer. ``talk``: whether assistant
    talk is searched.

    Not checked: rows whose prompt cannot be answered by design (``unanswerable`` is true in the row or the clip).
    """

    extra: list[str] = field(default_factory=list)
    talk: bool | None = True

    def __post_init__(self) -> None:
        self._extra  # noqa: B018 - report an invalid expression when the config is read

    def __call__(self, seen: Seen) -> Rejection | None:
        if seen.row.get("unanswerable") or seen.clip.get("unanswerable"):
            return None
        text, rules = seen.lower, _patterns(ENGLISH)
        if seen.language is not ENGLISH:
            text, rules = without_quotations(text, QUOTED_ANY), rules + _patterns(seen.language)
        patterns = [pattern for pattern, hints in rules if not hints or not hints.isdisjoint(seen.different_words)]
        for pattern in (*patterns, *self._extra):
            if found := pattern.search(text):
                return Rejection("refusal", f"{found[0][:100]!r}")
        return self._talks(seen) if self.talk and seen.row.get("prompt_kind") not in _MAY_TALK else None

    def _talks(self, seen: Seen) -> Rejection | None:
        languages = [ENGLISH] if seen.language is ENGLISH else [ENGLISH, seen.language]
        text = said = ""
        for pattern, hints in (rule for language in languages for rule in _patterns(language, "talk")):
            if hints and hints.isdisjoint(seen.different_words):
                continue
            if not text:
                text = without_quotations(seen.lower, QUOTED_ANY)
                said = f"{seen.row.get('seed_description') or ''} {seen.transcripts}".lower().replace("\u2019", "'")
            if (found := pattern.search(text)) and found[0].strip(' .!?\n(*_-"') not in said:
                return Rejection("assistant talk", f"{found[0].strip()[:100]!r}")
        return None

    @cached_property
    def _extra(self) -> tuple[re.Pattern[str], ...]:
        try:
            return tuple(map(re.compile, self.extra))
        except re.error as error:
            raise ConfigError(f"gates.refusals.extra: {error.pattern!r} is no regular expression: {error}") from None


@lru_cache(maxsize=32)
def _patterns(language: Language, part: str = "rules") -> tuple[tuple[re.Pattern[str], frozenset[str]], ...]:
    """The rules of a language, or its assistant talk: (pattern, words of which every match contains one). Most answers
    contain none, so no pattern is searched. Without such words the pattern is always searched."""
    found = language_lexicon(language, "refusals", part)
    return tuple((re.compile(rule.pattern), frozenset(rule.triggers)) for rule in (found[1] if found else ()))
