"""Rejects refusals: the LLM says that it cannot hear, got no audio, or will not help. English, and own patterns.

Not a refusal: there is no speech, something cannot be determined, or a character is sorry.
"""

import re
from dataclasses import dataclass, field
from functools import cached_property

from nemo_desta.errors import ConfigError
from nemo_desta.recipes.gates.text import Seen
from nemo_desta.recipes.items import Rejection

_CANNOT = (
    r"(?:cannot|can not|can't|could not|couldn't|won't|will not|am unable to|'m unable to|am not able to|"
    r"'m not able to|(?:do not|don't) have the (?:ability|capability|means) to|have no (?:way|means) (?:of|to)|"
    r"lack the (?:ability|capability) to)"
)
_NEGATION = r"\b(?:cannot|can not|can't|do not|don't|am not|'m not|unable|not able|not capable|lack)"
_AUDIO = r"(?:(?:audio|sound) (?:files?|clips?|recordings?|content|input)|audios?|recordings?|sounds?|clips?|files?)"
_THE = r"(?:the |this |that |these |your |any |an? |actual |provided |attached )*"
_HEAR = (
    r"(?:hear(?:ing)?|listen(?:ing)? to|play(?:ing)?|access(?:ing)?|process(?:ing)?|open(?:ing)?|perceiv(?:e|ing)|"
    r"analy[sz](?:e|ing))"
)
_SERVE = (
    r"(?:help|assist|provide|fulfill?|comply|answer|do th(?:at|is)|continue with|create|generate|produce|process|"
    r"determine|identify|listen|hear (?:the |this |that |your |any )?audio|access|analy[sz]e|play|transcribe|"
    r"translate|describe|complete|respond|discuss|engage|support|perform|see any|directly)"
)
_AI = r"an? (?:ai|artificial intelligence|(?:\w+ )?language model|text[- ]based \w+)\b"

#: (pattern, words of which every match contains one): most answers contain none, so no pattern is searched.
_REFUSALS = (
    (rf"\bas {_AI}[^.!?\n]{{0,90}}{_NEGATION}", "ai artificial model text"),
    (rf"\bi(?:'m| am) (?:just |only |merely )?{_AI}[^!?\n]{{0,90}}{_NEGATION}", "ai artificial model text"),
    (
        rf"\b(?:sorry|apologi[sz]e|afraid|unfortunately|regret)\b[^.!?\n]{{0,40}}?\bi ?{_CANNOT} (?:\w+ ){{0,2}}?"
        + _SERVE,
        "sorry apologise apologize afraid unfortunately regret",
    ),
    (
        rf"\bi ?{_CANNOT} (?:\w+ ){{0,3}}?{_HEAR} {_THE}{_AUDIO}",
        "hear hearing listen listening play playing access accessing process processing open opening perceive "
        "perceiving analyse analyze analysing analyzing",
    ),
    (rf"\bi (?:do not|don't) have (?:direct )?access to {_THE}{_AUDIO}", "access"),
    (rf"\bi (?:do not|don't|did not|didn't) (?:see|receive|find) {_THE}{_AUDIO}", "see receive find"),
    (
        rf"\b(?:no {_AUDIO} (?:\w+ )?(?:was|is|has been|were|have been)|{_AUDIO} (?:was|is|has|were) not(?: been)?) "
        r"(?:provided|attached|given|included|shared|uploaded|supplied)",
        "provided attached given included shared uploaded supplied",
    ),
    (
        rf"\b(?:please|could you|can you|if you) (?:\w+ ){{0,2}}(?:provide|upload|share|attach|send|supply)(?: me)?"
        rf"(?: with)? {_THE}{_AUDIO}",
        "provide upload share attach send supply",
    ),
    (r"\bi can only (?:process|read|work with|handle|understand|respond to) (?:\w+[- ]?){0,2}text", "text"),
)
_PATTERNS = tuple((re.compile(pattern), frozenset(words.split())) for pattern, words in _REFUSALS)


@dataclass(frozen=True)
class RefusalGate:
    """``extra``: more regular expressions, which are searched in the lower-case answer.

    Not checked: rows whose prompt cannot be answered by design (``unanswerable`` is true in the row or the clip).
    """

    extra: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._extra  # noqa: B018 - report an invalid expression when the config is read

    def __call__(self, seen: Seen) -> Rejection | None:
        patterns = [pattern for pattern, hints in _PATTERNS if not hints.isdisjoint(seen.different_words)]
        for pattern in (*patterns, *self._extra):
            if (found := pattern.search(seen.lower)) and not self._by_design(seen):
                return Rejection("refusal", f"{found[0][:100]!r}")
        return None

    @cached_property
    def _extra(self) -> tuple[re.Pattern[str], ...]:
        try:
            return tuple(map(re.compile, self.extra))
        except re.error as error:
            raise ConfigError(f"gates.refusals.extra: {error.pattern!r} is no regular expression: {error}") from None

    @staticmethod
    def _by_design(seen: Seen) -> bool:
        return bool(seen.row.get("unanswerable") or seen.clip.get("unanswerable"))
