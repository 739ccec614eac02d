"""Rejects refusals: the LLM says that it cannot hear, got no audio, or will not help. English, and own patterns.

Not a refusal: there is no speech, something cannot be determined, or a character is sorry.
"""

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from nemo_desta.errors import ConfigError
from nemo_desta.recipes.gates.leak_lexicon import load_lexicon
from nemo_desta.recipes.gates.text import Seen
from nemo_desta.recipes.items import Rejection

#: (pattern, words of which every match contains one): most answers contain none, so no pattern is searched.
_PATTERNS = tuple(
    (re.compile(rule.pattern), frozenset(rule.triggers))
    for rule in load_lexicon(Path(__file__).with_name("refusals_english.yaml"))[1]
)


@dataclass(frozen=True)
class RefusalGate:
    """``extra``: more regular expressions, which are searched in the lower-case answer.

    Not checked: rows whose prompt cannot be answered by design (``unanswerable`` is true in the row or the clip).
    """

    extra: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._extra  # noqa: B018 - report an invalid expression when the config is read

    def __call__(self, seen: Seen) -> Rejection | None:
        if seen.row.get("unanswerable") or seen.clip.get("unanswerable"):
            return None
        patterns = [pattern for pattern, hints in _PATTERNS if not hints.isdisjoint(seen.different_words)]
        for pattern in (*patterns, *self._extra):
            if found := pattern.search(seen.lower):
                return Rejection("refusal", f"{found[0][:100]!r}")
        return None

    @cached_property
    def _extra(self) -> tuple[re.Pattern[str], ...]:
        try:
            return tuple(map(re.compile, self.extra))
        except re.error as error:
            raise ConfigError(f"gates.refusals.extra: {error.pattern!r} is no regular expression: {error}") from None
