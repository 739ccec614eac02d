"""Tells the language of short answers by their words: those of the language files, which no statistics can judge.

A word counts for another language only if the row's own language does not have it. Names, loanwords, and words of the
prompt, the description or the speech count for no language, so "Berlin" and "Jazz" pass everywhere.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from nemo_desta.recipes.gates.text import Seen, words_of
from nemo_desta.recipes.languages import ENGLISH, Language, load_language, shipped_languages

_CJK = re.compile("[\u3041-\u30ff\u3400-\u9fff]")
_KANA = re.compile("[\u3041-\u30ff]")
_TITLE = re.compile(r"[^\W\d_]+")
#: Japanese text of so many Han letters has kana among them.
_LONGEST_WITHOUT_KANA = 8


class Vocabulary:
    """``own``: words of the language; ``others``: word -> code of a language that has it, own words excluded."""

    def __init__(self, language: Language, others: Sequence[Language]) -> None:
        self.code, self.spaces = language.code, language.spaces
        self.own = _words(language)
        self.functions = frozenset((language.language.function_words if language.language else "").split())
        self.others: dict[str, str] = {}
        self._strings: list[tuple[str, str]] = []
        for other in others:
            if other.spaces:
                self.others.update((word, other.code) for word in _words(other) - self.own)
            elif other.language and not language.spaces:
                self._strings += [(text, other.code) for text in other.language.function_words.split()]
        if language.values:  # English values that have a word here
            english = {word for table in language.values.values() for key in table for word in words_of(key)}
            self.others.update((word, "en") for word in english - self.own if len(word) > 1)

    def share(self, words: Sequence[str]) -> float:
        """The share of function words of the language."""
        return sum(map(self.functions.__contains__, words)) / len(words) if words else 0.0

    def other(self, seen: Seen) -> tuple[str, str] | None:
        """(code, words) of another language if the answer is in it, or None.

        An answer of one or two words must consist of words of that language, a letter is none ("A"); a longer one must
        have two of them, twice as many as of its own language, and must not be a title ("The Rolling Stones").
        """
        given = set(words_of(f"{seen.prompt} {seen.row.get('seed_description') or ''} {seen.transcripts}"))
        words = [word for word in seen.words if word not in given]
        if not self.spaces and _CJK.search(seen.answer):
            return self._other_without_spaces(seen.answer)
        found = [word for word in words if word in self.others]
        if len(seen.words) <= 2:
            if not found or len(found) < len(words) or any(len(word) == 1 for word in found):
                return None
        elif len(set(found)) < 2 or len(found) < 2 * sum(map(self.own.__contains__, seen.words)):
            return None
        elif all(word[:1].isupper() for word in _TITLE.findall(seen.answer)):
            return None
        return Counter(map(self.others.get, found)).most_common(1)[0][0], " ".join(found[:4])

    def _other_without_spaces(self, answer: str) -> tuple[str, str] | None:
        """Japanese and Chinese share letters: Japanese has kana, Chinese has function words of its own."""
        if self.code != "ja" or _KANA.search(answer):
            return None
        if found := [(code, text) for text, code in self._strings if text in answer]:
            return found[0]
        return ("zh", "no kana") if len(_CJK.findall(answer)) > _LONGEST_WITHOUT_KANA else None


@lru_cache(maxsize=16)
def vocabulary(language: Language) -> Vocabulary | None:
    """The vocabulary of a language; None if its file has no words for this gate."""
    if language.language is None:
        return None
    others = [load_language(code) for code in shipped_languages() if code != language.code]
    return Vocabulary(language, others)


def _words(language: Language) -> set[str]:
    """Function words, frequent answers, and the words of descriptions."""
    texts = []
    if language.language is not None:
        texts += [language.language.function_words, language.language.answers]
    if language.description is not None:
        known = language.description
        texts += [*known.names.values(), *known.domains.values(), known.yes, known.no]
    texts += [word for table in language.values.values() for word in table.values()]
    if language.facts is not None and language is not ENGLISH:
        texts += [w for table in language.facts.synonyms.values() for words in table.values() for w in words]
    return set(words_of(" ".join(texts)))
