"""Splits English text into sentences and words, without data files, and detects a text's language.

The original uses NLTK: Punkt, whose learned abbreviations are a data file, and its word tokenizer. These are our own
rules for the same purpose. Words of ordinary text are equal; sentences differ where only the learned list helps. With
NLTK and its data installed, give `nltk_sentences` and `nltk_words` to `Tools`.

The original uses langdetect without a seed, so its verdicts on short texts change from run to run. The default here is
py3langid, which needs no seed; langdetect with a seed is optional.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

_TITLES = "mr mrs ms messrs dr prof rev hon gen col sgt capt lt gov sen rep st jr sr".split()
_SHORT = (
    "vs etc al inc ltd co corp dept est approx e.g i.e cf ca fig figs vol ed eds pp a.m p.m ph.d u.s u.k u.n".split()
)
#: Never end a sentence, not even before a capital letter.
_NEVER = frozenset(_TITLES) | {"vs", "e.g", "i.e", "cf", "fig", "figs"}
_SPLIT_WORDS = re.compile(r"\b(can)(not)\b|\b(gim|lem)(me)\b|\b(gon|got|wan)(na|ta)\b", re.IGNORECASE)


def split_sentences(text: str) -> list[str]:
    """Sentences in order, stripped; closing quotation marks stay with their sentence."""
    found, start = [], 0
    for end in re.finditer(r"""[.?!]+[)\]}"'\u201d\u2019]*(?=\s+\S)""", text):
        if _ends(text, end):
            found.append(text[start : end.end()])
            start = end.end()
    return [sentence.strip() for sentence in (*found, text[start:]) if sentence.strip()]


def split_words(text: str) -> list[str]:
    """Words and marks: contractions are split, hyphenated words stay whole, marks are separate."""
    words = []
    for sentence in split_sentences(text):
        spaced = re.sub(r"(\.)([)\]}>\"'\u201d\u2019]*)\s*$", r" \1 \2", sentence)  # the last full stop only
        spaced = re.sub(r"([,:])(?=[^\d]|$)", r" \1 ", spaced)
        spaced = re.sub(r"(\.{2,}|--+|[;@#$%&*?!\"\u201c\u201d\u00ab\u00bb()\[\]{}<>])", r" \1 ", spaced)
        spaced = re.sub(r"n't(?=\s|$)", lambda m: f" {m[0]}", spaced, flags=re.IGNORECASE)
        spaced = re.sub(r"(?<=[^'\s])('(?:s|m|d|ll|re|ve))?('?)(?=\s|$)", r" \1 \2", spaced, flags=re.IGNORECASE)
        spaced = _SPLIT_WORDS.sub(lambda m: " ".join(part for part in m.groups() if part), spaced)
        words += spaced.split()
    return words


def nltk_sentences(data: str | Path) -> Callable[[str], Sequence[str]]:
    """NLTK's own splitter with the English ``punkt_tab`` data under the folder ``data``."""
    return _nltk(data).sent_tokenize


def nltk_words(data: str | Path) -> Callable[[str], Sequence[str]]:
    """NLTK's own word tokenizer, which needs the same data."""
    return _nltk(data).word_tokenize


def _nltk(data: str | Path):
    try:
        import nltk
    except ImportError as error:
        raise ImportError("the original's sentences need NLTK: pip install nltk") from error
    if not (Path(data) / "tokenizers" / "punkt_tab" / "english").is_dir():
        raise FileNotFoundError(f"{data} has no tokenizers/punkt_tab/english; it is part of NLTK's data")
    nltk.data.path.insert(0, str(data))
    return nltk.tokenize


def _ends(text: str, end: re.Match[str]) -> bool:
    """Whether this mark ends a sentence."""
    after = re.compile(r"\s*(\S)").match(text, end.end())[1]
    if end[0].startswith(".."):
        return not after.islower()
    if end[0][0] != ".":
        return True
    before = re.search(r"(\S*)$", text[max(0, end.start() - 20) : end.start()])[1]
    before = before.lstrip("([{\"'\u201c\u2018").lower()
    if before in _NEVER or re.fullmatch(r"[^\W\d_]", before):  # titles and initials
        return False
    return after.isupper() if before in _SHORT else not after.islower()


def tell_language(text: str) -> str | None:
    """ISO code of the text's language by py3langid; None for a text without a letter.

    Raises:
        ImportError: py3langid is not installed.
    """
    if not any(char.isalpha() for char in text):
        return None
    # The identifier encodes the text, which fails for a lone surrogate (a broken emoji).
    text = text.encode("utf-8", "replace").decode("utf-8")
    return _identifier().classify(text)[0]


def langdetect_detector(seed: int = 0) -> Callable[[str], str | None]:
    """langdetect as in the original, but with a seed; it returns None for a text without features."""
    try:
        from langdetect import DetectorFactory, LangDetectException, detect
    except ImportError as error:
        raise ImportError("the original's language detector is langdetect: pip install langdetect") from error

    def tell(text: str) -> str | None:
        DetectorFactory.seed = seed
        try:
            return detect(text)
        except LangDetectException:
            return None

    return tell


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise ImportError("language detection needs py3langid: pip install 'nemo_desta[recipes]'") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE)
