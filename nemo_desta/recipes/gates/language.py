"""Rejects answers in another language than the prompt's, or with letters of a script that the prompt does not use.

Counting English function words decides most rows. py3langid (naive Bayes over byte n-grams, offline) classifies the
others; its result counts only for long enough texts and above a minimum confidence.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from nemo_desta.recipes.gates.text import Seen, words_of
from nemo_desta.recipes.gates.vocabulary import vocabulary
from nemo_desta.recipes.items import Rejection
from nemo_desta.recipes.languages import ENGLISH
from nemo_desta.recipes.unicode_scripts import SCRIPTS

#: Greek letters are symbols of quantities in any language, so only four in a row count.
_SCRIPT = {name: re.compile(f"[{letters}]" + ("{4}" if name == "Greek" else "")) for name, letters in SCRIPTS.items()}
_ANY_SCRIPT = re.compile("|".join(pattern.pattern for pattern in _SCRIPT.values()))

_WORDS = yaml.safe_load(Path(__file__).with_name("language.yaml").read_text(encoding="utf-8"))
_ENGLISH = frozenset(ENGLISH.language.function_words.split())
#: Minimum shares of function words: for English, and for a text that may be English.
_IS_ENGLISH, _MAYBE_ENGLISH = 0.12, 0.07
#: Shorter English rows are not checked: names, titles, loanwords.
_FEWEST_WORDS = 5
#: Words of a quotation, and different ones of another language among them. The closing mark may be cut off.
_SHORTEST_QUOTED, _FEWEST_QUOTED = 6, 3
_QUOTATION = re.compile('["\u201c]([^"\u201c\u201d\n]+)')

_NAMES_LANGUAGE = re.compile(
    r"\b(?:translat|übersetz|tradu|vertaal|bilingual|(?:an|)other language|foreign language|"
    + "|".join(_WORDS["names"].split())
    + r")"
    r"|[中英法德日韩俄]语|[中英法德日韩俄]文|[英独仏]語|(?:日本|中国|韓国)語|翻译|翻訳|번역|(?:영|한국|일본|중국)어|перевед|язык",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class LanguageGate:
    """``min_words`` and ``min_letters``: the language of shorter answers is not checked; their script always is.
    ``min_confidence``: of py3langid, 0 to 1. ``max_foreign_letters``: letters of a script that is neither in the
    prompt nor in the description.

    Not checked: prompts that name a language or ask for a translation, answers in the clip's spoken language, and
    lists of words from prompt and description. Rows in another language than English: the words of the language
    files judge short answers, too, and the clip's spoken language is no excuse.
    """

    min_words: int = 6
    min_letters: int = 30
    min_confidence: float = 0.9
    max_foreign_letters: int = 0

    def __call__(self, seen: Seen) -> Rejection | None:
        if not seen.answer.isascii() and (verdict := self._script(seen)):
            return verdict
        if seen.language is not ENGLISH:
            return self._in_language(seen)
        if verdict := self._quoted(seen):
            return verdict
        words = seen.words
        share = _english_share(words)
        if share >= _IS_ENGLISH and _language_of_prompt(seen.prompt, self.min_confidence) == "en":
            return None
        letters = sum(map(len, words))
        spaced = letters < 12 * len(words)  # scripts without spaces: letters alone count
        is_short = letters < self.min_letters or (spaced and len(words) < self.min_words)
        if names_language(seen.prompt) or (is_short and (share or len(words) < _FEWEST_WORDS)):
            return None
        expected = _language_of_prompt(seen.prompt, self.min_confidence)
        if is_short:  # too short for statistics
            other = vocabulary(ENGLISH).other(seen) if expected == "en" else None
            if other is None or _is_spoken(other[0], seen):
                return None
            return Rejection("wrong language", f"{other[0]} ({other[1]!r}) to a prompt in en: {seen.answer[:60]!r}")
        if expected is None or (expected == "en" and share >= _MAYBE_ENGLISH):
            return None
        if expected != "en" and share >= 2 * _IS_ENGLISH:
            found, confidence = "en", 1.0
        else:
            found, confidence = _identifier().classify(" ".join(words[:60]))
        if confidence < self.min_confidence or _same(found, expected) or _is_spoken(found, seen):
            return None
        known = set(words_of(f"{seen.prompt} {seen.row.get('seed_description') or ''}"))
        if found != "en" and sum(map(known.__contains__, words)) >= 0.5 * len(words):
            return None
        return Rejection(
            "wrong language", f"{found} ({confidence:.2f}) to a prompt in {expected}: {seen.answer[:60]!r}"
        )

    def _quoted(self, seen: Seen) -> Rejection | None:
        """Invented speech in another language: 'The speaker says: "Ich bin nicht sehr alt"' about English speech. A
        quotation of six words or more has three different ones of it and no English one. Titles are shorter."""
        quotations = _QUOTATION.findall(seen.answer)
        if (
            not quotations
            or names_language(seen.prompt)
            or _language_of_prompt(seen.prompt, self.min_confidence) != "en"
        ):
            return None
        lexicon = vocabulary(ENGLISH)
        for quotation in quotations:
            words = words_of(quotation)
            foreign = [word for word in dict.fromkeys(words) if word in lexicon.others]
            if len(words) < _SHORTEST_QUOTED or len(foreign) < _FEWEST_QUOTED or not lexicon.own.isdisjoint(words):
                continue
            given = set(words_of(f"{seen.prompt} {seen.row.get('seed_description') or ''} {seen.transcripts}"))
            code = Counter(map(lexicon.others.get, foreign)).most_common(1)[0][0]
            if 2 * len(given.intersection(words)) < len(set(words)) and not _is_spoken(code, seen):
                return Rejection("wrong language", f"{code} ({' '.join(foreign[:4])!r}) is quoted: {quotation[:60]!r}")
        return None

    def _in_language(self, seen: Seen) -> Rejection | None:
        expected, words = seen.language.code, seen.words
        asks = seen.language.language and seen.language.language.other_languages
        if names_language(seen.prompt) or (asks and re.search(asks, seen.prompt, re.IGNORECASE)):
            return None
        lexicon = vocabulary(seen.language)
        if lexicon is not None and (other := lexicon.other(seen)):
            return Rejection(
                "wrong language", f"{other[0]} ({other[1]!r}) to a prompt in {expected}: {seen.answer[:60]!r}"
            )
        letters = sum(map(len, words))
        spaced = letters < 12 * len(words)
        if letters < self.min_letters or (spaced and len(words) < self.min_words) or not can_identify(expected):
            return None
        if lexicon is not None and spaced and lexicon.share(words) >= 2 * _IS_ENGLISH:
            return None
        found, confidence = _identifier().classify(" ".join(words[:60]))
        known = set(words_of(f"{seen.prompt} {seen.row.get('seed_description') or ''} {seen.transcripts}"))
        known_words = sum(map(known.__contains__, words))
        if confidence < self.min_confidence or _same(found, expected) or known_words >= 0.5 * len(words):
            return None
        return Rejection(
            "wrong language", f"{found} ({confidence:.2f}) to a prompt in {expected}: {seen.answer[:60]!r}"
        )

    def _script(self, seen: Seen) -> Rejection | None:
        if not _ANY_SCRIPT.search(seen.answer):
            return None
        # The answer may quote the speech or the prompt. Kanji are Han letters.
        given = " ".join((seen.prompt, str(seen.row.get("seed_description") or ""), seen.transcripts))
        allowed = {name for name, letters in _SCRIPT.items() if letters.search(given)}
        if seen.language.language is not None:
            allowed.update(seen.language.language.scripts)
        if "Kana" in allowed:
            allowed.add("Han")
        for name, letters in _SCRIPT.items():
            found = [] if name in allowed else letters.findall(seen.answer)
            if len(found) > self.max_foreign_letters:
                if names_language(seen.prompt) or names_language(seen.answer):
                    return None
                return Rejection("unexpected script", f"{len(found)} letters of {name}: {''.join(found)[:20]!r}")
        return None


def can_identify(code: str) -> bool:
    """Whether long answers in this language can be told from those in others."""
    return code in _WORDS["languages"].split()


@lru_cache(maxsize=1)
def _identifier() -> Any:
    """py3langid, loaded on the first use (about a second). ``classify``: (ISO 639-1 code, confidence from 0 to 1)."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise ImportError(
            "the language gate needs py3langid: pip install 'nemo_desta[recipes]', or turn it off with "
            "gates.language=null"
        ) from error
    model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    model.set_languages(sorted(set(_WORDS["languages"].split()) & set(model.labels)))
    return model


def _english_share(words: Sequence[str]) -> float:
    return sum(map(_ENGLISH.__contains__, words)) / len(words) if words else 0.0


@lru_cache(maxsize=8192)
def names_language(text: str) -> bool:
    """Whether a prompt names a language or asks for a translation."""
    return _NAMES_LANGUAGE.search(text) is not None


@lru_cache(maxsize=8192)
def _language_of_prompt(prompt: str, min_confidence: float) -> str | None:
    """None: py3langid is not sure."""
    words = words_of(prompt)
    share = _english_share(words)
    if share >= 2 * _IS_ENGLISH and len(words) >= 4:
        return "en"
    language, confidence = _identifier().classify(" ".join(words))
    if confidence >= min_confidence or (language == "en" and share > 0):
        return language
    return None


def _same(one: str, other: str) -> bool:
    return one == other or any(one in kin.split() and other in kin.split() for kin in _WORDS["kin"])


def _is_spoken(language: str, seen: Seen) -> bool:
    """The speech in the clip is in this language, so the answer may quote it."""
    declared = str(seen.clip.get("language") or "").lower().replace("_", "-").split("-")[0]
    if declared and _same(language, declared):
        return True
    spoken = words_of(seen.transcripts)
    return len(spoken) >= 3 and _same(language, _identifier().classify(" ".join(spoken[:60]))[0])
