"""Finds the options that an answer names by their text: as whole words that are not ruled out. Used by `choices`."""

import re
import unicodedata
from collections.abc import Sequence

_HIDDEN = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
_HYPHEN = re.compile(r"(?<=\w)[-\u2010\u2011_](?=\w)")
#: "not a dog", "I do not think it is a dog", "it does not sound like a dog", "no dog", "neither a dog nor a cat".
_NEGATED = re.compile(
    r"(?:\b(?:not|no|never|cannot|without|rather than|instead of|neither|nor|except|excluding)|n't)"
    r"(?: (?:be|hear|sound|seem|appear|look|think|believe|say|choose|like|to|that|it|it's|this|is|was|really))*"
    r"(?: (?:a|an|the|any|option|choice))*[ \"'“(*]*$"
)
_REJECTED = re.compile(
    r"^[\"'”)*]*,? (?:(?:is|was|does|can|could|would)n't\b|cannot\b|(?:does|do|did|can|could|would) not\b"
    r"|(?:is|are|was|were|seems?|sounds?|looks?|can be|could be|would be|must be) (?:clearly |also )?"
    r"(?:not\b(?! only)|wrong|incorrect|unlikely|ruled out|excluded|out\b|false|impossible))"
)
#: Words of ordinary sentences: as an option they count only alone between punctuation.
_COMMON = frozenset("no none not all both other neither either one it he she they i a".split())
_ARTICLES = ("a ", "an ", "the ")


def named(text: str, names: Sequence[tuple[str, int]]) -> set[int]:
    """The numbers of the names (spaced text and number, longest first) that ``text`` holds and does not rule out."""
    text = f" {spaced(text)} "
    found: set[int] = set()
    taken = bytearray(len(text))  # 1 where a longer option was found
    for name, i in names:
        start = text.find(name)
        while start >= 0:
            end = start + len(name)
            if _whole(text, start, end, name) and not any(taken[start:end]):
                taken[start:end] = b"\1" * len(name)
                if not _ruled_out(text, start, end, name):
                    found.add(i)
            start = text.find(name, start + 1)
    return found


def _whole(text: str, start: int, end: int, name: str) -> bool:
    """Not part of a longer word, number or note name ("C" in "C#", "5" in "1.5"). CJK has no word boundaries."""
    before, after = text[start - 1], text[end] if end < len(text) else " "
    if not _cjk(name[0]) and (before.isalnum() or before == "_" or (name[0].isdigit() and before in "-−+")):
        return False
    if before in ".,:/" and name[0].isdigit() and text[start - 2].isdigit():
        return False
    if not _cjk(name[-1]) and (after.isalnum() or after in "_#♯♭+"):
        return False
    return not (after in ".,:/" and name[-1].isdigit() and text[end + 1 : end + 2].isdigit())


def _ruled_out(text: str, start: int, end: int, name: str) -> bool:
    before, after = text[max(0, start - 48) : start], text[end : end + 40]
    if name in _COMMON:  # "no" in "I have no idea"; not in "yes or no"
        alone = not before.rstrip()[-1:].isalnum() or before.rstrip().endswith((" and", " or"))
        return not alone or after.lstrip()[:1].isalnum()
    return bool(_NEGATED.search(before) or _REJECTED.search(after))


def plain(text: str) -> str:
    """Text for equality: spaced, without punctuation around it."""
    return spaced(text).strip(" \"'“”‘’«»`*_()[]{}<>.,:;!?。，：；！？\\")


def spaced(text: str) -> str:
    """Case folded; hyphens, underscores and runs of white space become one space."""
    return " ".join(_HYPHEN.sub(" ", text.casefold()).split())


def normal(text: str) -> str:
    """NFKC form ("Ｂ" becomes "B") without invisible characters; apostrophes become ASCII."""
    return text if text.isascii() else _HIDDEN.sub("", unicodedata.normalize("NFKC", text)).replace("’", "'")


def without_article(text: str) -> str:
    """A spaced text without a leading a, an or the."""
    for article in _ARTICLES:
        if text.startswith(article) and len(text) > len(article):
            return text[len(article) :]
    return text


def _cjk(char: str) -> bool:
    return "\u2e80" <= char <= "\uffdc" or char >= "\U00020000"
