"""Detects prompts that refer to a text about the clip instead of its sound."""

import re

_THINGS = r"(?:descriptions?|transcripts?|transcriptions?|captions?|text|summary|summaries|entry|entries|fields?)"
_GIVEN = r"(?:provided|given|available|listed|attached|accompanying|above|following|supplied|stated|mentioned)"
_INFORMATION = r"(?:information|info|details|data)"

#: (what is wrong, pattern); case is ignored.
_LEAKS = (
    ("metadata", r"\bmeta-?data\b|\bannotat\w+|\battributes?\b|\b(?:tags?|labels?|time-?stamps?|key-value)\b"),
    ("a text as given", rf"\b(?:the|this|that|these|those|your|each|{_GIVEN})\s+(?:\w+\s+)?{_THINGS}\b"),
    ("information as given", rf"\b{_GIVEN}\s+(?:audio\s+)?(?:{_INFORMATION}|properties|values?)\b"),
    ("information as given", rf"\b(?:according to|based on|using|from) (?:the|this|these) {_INFORMATION}\b"),
    ("as written", r"\b(?:as|is|are|was|were) (?:described|listed|stated|specified|noted|written|labell?ed)\b"),
    ("as written", r"\b(?:described|listed|stated|mentioned|specified|written) (?:above|below|here)\b"),
    ("as written", rf"\b(?:described|listed|stated|mentioned|specified|written) in (?:the|this) {_THINGS}\b"),
    ("reading", r"\b(?:you|i|we) (?:have |just |just now )?read\b|\bread(?:ing)? (?:this|the) (?!aloud)"),
    ("a description itself", r"\[\d{1,2}:\d{2}\s*-|\|[\w /]+\||\(\w+: [^)]*, \w[\w ]*: "),
)
_PATTERNS = tuple((what, re.compile(pattern, flags=re.IGNORECASE)) for what, pattern in _LEAKS)


def leak(prompt: str) -> str | None:
    """How the prompt refers to a text about the clip, with the matching words; None if it does not.

    The check is strict: a false alarm costs one proposal, but a missed leak teaches the LLM to speak of texts.
    """
    for what, pattern in _PATTERNS:
        if found := pattern.search(prompt):
            return f"{what}: {found.group()!r}"
    return None
