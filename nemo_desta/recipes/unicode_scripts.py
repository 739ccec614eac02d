"""Unicode ranges of the letters of each script, and the script that a text is written in."""

import re
from pathlib import Path

import yaml

#: Script -> its letters, as they stand between the brackets of a regular expression. Latin is not in the table.
SCRIPTS: dict[str, str] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
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
