"""Unicode ranges of the letters of each script, and the script that a text is written in."""

import re

#: Script -> its letters, as they stand between the brackets of a regular expression. Latin is not in the table.
SCRIPTS = {
    "Han": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
    "Kana": "\u3041-\u30ff",
    "Hangul": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
    "Cyrillic": "\u0400-\u052f",
    "Greek": "\u0370-\u03ff\u1f00-\u1fff",
    "Arabic": "\u0620-\u06ff\u0750-\u077f",
    "Hebrew": "\u05d0-\u05ea",
    "Devanagari": "\u0900-\u097f",
    "Indic": "\u0980-\u0dff",
    "Thai": "\u0e01-\u0e5b",
    "Lao, Tibetan or Burmese": "\u0e80-\u109f",
    "Georgian": "\u10a0-\u10ff",
    "Armenian": "\u0531-\u058f",
    "Ethiopic": "\u1200-\u137f",
    "Khmer": "\u1780-\u17ff",
}
_PATTERNS = {name: re.compile(f"[{letters}]") for name, letters in SCRIPTS.items()}
_ANY = re.compile(f"[{''.join(SCRIPTS.values())}]")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")
#: Only the first characters of a text are counted.
_MAX_CHARACTERS = 200


def script_of(text: str) -> str:
    """The most frequent script at the start of the text, a cheap substitute for its language.

    ``Japanese`` for Han with kana; ``no letters`` for a text of digits and punctuation.
    """
    text = text[:_MAX_CHARACTERS]
    if text.isascii() or not _ANY.search(text):
        return "Latin" if _LATIN.search(text) else "no letters"
    counts: dict[str, float] = {name: len(pattern.findall(text)) for name, pattern in _PATTERNS.items()}
    counts["Latin"] = len(_LATIN.findall(text)) / 3  # a Latin word has the weight of one or two Han characters
    if counts["Kana"] and counts["Kana"] + counts["Han"] > counts["Latin"]:
        return "Japanese"
    return max(counts, key=counts.__getitem__)
