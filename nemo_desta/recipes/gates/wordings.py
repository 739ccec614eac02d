"""The words by which an answer names an attribute's value: the value itself, its synonyms, the stems of its words.

`grounded` asks whether an answer names what the prompt is about; the report and the probe count
`grounded_attributes`.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from nemo_desta.core.think_tags import split_thought
from nemo_desta.recipes.gates.text import Seen, words_of
from nemo_desta.recipes.languages import ENGLISH, Language, Languages
from nemo_desta.recipes.read_description import read_description

#: A value that says that nothing is known.
_NOTHING = frozenset({"unknown", "none", "other", "n/a", "not known", "unspecified"})
#: Letters of a word that are compared at least; a shorter word is compared whole.
_SHORTEST_STEM = 4
#: The share of words that counts as most of them.
_MOST = 0.6


class Wordings:
    """The wordings of one language. Texts are compared in lower case, as `Seen.lower` is.

    Values of an attribute with a table of synonyms (gender, emotion, digit) are named by whole words. Any other value
    is named by one of its words, whatever its ending: "rooster crowing" by "a rooster", "it crows".
    """

    def __init__(self, language: Language) -> None:
        facts = language.facts or ENGLISH.facts
        self.language, self._synonyms = language, facts.synonyms
        self._names = {word.lower(): name for name, word in language.words.names.items()}
        self._related = {name: _any_of(words, language, endings=True) for name, words in facts.related.items()}
        self._pattern = lru_cache(4096)(self._compile)

    def stated(self, row: Mapping[str, Any]) -> dict[str, set[str]]:
        """Attribute -> its values in the row's description, in lower case."""
        found: dict[str, set[str]] = {}
        description = row.get("seed_description")
        for key, value in read_description(description).attributes if isinstance(description, str) else ():
            known = {part.strip().lower() for part in value.split("/")} - _NOTHING
            if known:
                found.setdefault(self._names.get(key, key.replace(" ", "_")), set()).update(known)
        return found

    def names(self, attribute: str, values: Iterable[str], text: str) -> bool:
        """Whether ``text`` names one of the values."""
        return any(self._pattern(attribute, value).search(text) for value in values)

    def repeats(self, transcript: str, text: str, *, cut: bool = False) -> bool:
        """Whether ``text`` has most of the different words of a transcript (letters in languages without blanks);
        ``cut``: or the transcript most of those of the text, which the token limit ended."""
        spoken, written = set(words_of(transcript)), set(words_of(text))
        if not self.language.spaces:
            spoken, written = set("".join(spoken)), set("".join(written))
        digits = self._synonyms.get("digit", {})
        heard = [word in written or (word in digits and self.names("digit", (word,), text)) for word in spoken]
        whole = sum(heard) >= _MOST * len(heard)
        return whole or (cut and len(written & spoken) >= _MOST * len(written))

    def tells(self, row: Mapping[str, Any], said: str, text: str) -> bool | None:
        """Whether ``text`` names a value of the description or repeats what is ``said``; None: neither is known."""
        found = [self.names(name, values, text) for name, values in self.stated(row).items() if name != "duration"]
        if said:
            found.append(self.repeats(said, text, cut=bool(row.get("truncated"))))
        return any(found) if found else None

    def name(self, attribute: str) -> str:
        """The attribute's name in descriptions, in lower case."""
        return self.language.words.names.get(attribute, attribute.replace("_", " ")).lower()

    def is_related(self, attribute: str, text: str) -> bool | None:
        """Whether the text has a word that belongs to the attribute, such as "he" to gender. None: the language has
        synonyms for this attribute and no such words, so another wording cannot be told from none."""
        if attribute not in self._related:
            return None if attribute in self._synonyms else False
        return self._related[attribute].search(text) is not None

    def _compile(self, attribute: str, value: str) -> re.Pattern[str]:
        words, table = {value}, self._synonyms.get(attribute, {})
        for key, others in table.items():
            group = {str(word).lower() for word in (key, *others)}
            words |= group if value in group else set()
        stems = set() if len(words) > 1 else self._stems(value)
        whole = _any_of(words, self.language).pattern
        return re.compile("|".join([whole, *stems]))

    def _stems(self, value: str) -> set[str]:
        if not self.language.spaces:
            return {re.escape(value[at : at + 2]) for at in range(len(value) - 1)}
        hollow = {*words_of(" ".join(self.language.words.domains.values())), "sound", "noise", "and", "the", "other"}
        words = [word for word in words_of(value) if len(word) > 2 and word not in hollow]
        return {rf"(?<!\w){re.escape(word[: max(_SHORTEST_STEM, len(word) - 3)])}\w*" for word in words}


def grounded_attributes(row: Mapping[str, Any]) -> dict[str, bool]:
    """Each attribute that the prompt requires and the description states -> whether the answer names its value; of a
    ``transcript``, most of its words. Of a prompt of kind ``describe`` that requires nothing, "description" -> whether
    the answer names anything in it."""
    words, stated, found = wordings(Languages().of_row(row)), None, {}
    answer = split_thought(row["response"]).answer.lower().replace("\u2019", "'")
    if row.get("prompt_kind") == "describe" and not row.get("prompt_requires"):
        told = words.tells(row, Seen(row).transcripts, answer)
        return {} if told is None else {"description": told}
    for name in row.get("prompt_requires") or ():
        stated = words.stated(row) if stated is None else stated
        if name == "transcript":
            if text := Seen(row).transcripts:
                found[name] = words.repeats(text, answer, cut=bool(row.get("truncated")))
        elif isinstance(name, str) and (values := stated.get(name)):
            found[name] = words.names(name, values, answer)
    return found


def _any_of(words: Iterable[str], language: Language, endings: bool = False) -> re.Pattern[str]:
    """Matches one of the words; ``endings``: longer words also with up to three more letters."""
    before, after = (r"(?<!\w)", r"(?!\w)") if language.spaces else ("", "")
    longest_first = sorted({word.lower() for word in words}, key=lambda word: (-len(word), word))
    more = r"\w{0,3}" if endings and language.spaces else ""
    patterns = [re.escape(word) + (more if len(word) > 4 else "") for word in longest_first]
    return re.compile(f"{before}(?:{'|'.join(patterns)}){after}")


@lru_cache(maxsize=16)
def wordings(language: Language) -> Wordings:
    """The `Wordings` of a language."""
    return Wordings(language)
