"""In which script a text is written: a cheap stand-in for its language where rows do not say one."""

import re

_SCRIPTS = {
    "Han": "\u4e00-\u9fff\u3400-\u4dbf",
    "Kana": "\u3040-\u30ff",
    "Hangul": "\uac00-\ud7af\u1100-\u11ff",
    "Cyrillic": "\u0400-\u052f",
    "Greek": "\u0370-\u03ff",
    "Arabic": "\u0600-\u06ff\u0750-\u077f",
    "Hebrew": "\u0590-\u05ff",
    "Devanagari": "\u0900-\u097f",
    "Bengali": "\u0980-\u09ff",
    "Tamil": "\u0b80-\u0bff",
    "Thai": "\u0e00-\u0e7f",
    "Georgian": "\u10a0-\u10ff",
    "Armenian": "\u0530-\u058f",
    "Ethiopic": "\u1200-\u137f",
}
#: Characters that decide.
_LOOKED_AT = 200
_PATTERNS = {name: re.compile(f"[{letters}]") for name, letters in _SCRIPTS.items()}
_ANY = re.compile("[" + "".join(_SCRIPTS.values()) + "]")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")


def script_of(text: str) -> str:
    """The script of most letters at the text's start; Japanese when kana is among Han; ``no letters`` for digits and
    signs alone."""
    text = text[:_LOOKED_AT]
    if text.isascii() or not _ANY.search(text):
        return "Latin" if _LATIN.search(text) else "no letters"
    counts = {name: len(pattern.findall(text)) for name, pattern in _PATTERNS.items()}
    counts["Latin"] = len(_LATIN.findall(text)) / 3  # a word of Latin letters weighs like one or two signs elsewhere
    if counts["Kana"] and counts["Kana"] + counts["Han"] > counts["Latin"]:
        return "Japanese"
    return max(counts, key=counts.__getitem__)
