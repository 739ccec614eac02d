"""Wordings of values that an answer may use without being told: "seven" for 7, "woman" for female.

They come from `number_words.yaml` and from the synonyms in the language files of the recipes, in English and in the
language of the clip. A wording that names another value, or that two values could claim, is left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from nemo_desta.evaluation.attributes import plain_words
from nemo_desta.recipes.languages import ENGLISH, Language, Languages

_NUMBERS = Path(__file__).with_name("number_words.yaml")


def language_of(row: Mapping[str, Any]) -> Language:
    """The language of a row's clip; English if the row does not say."""
    declared = row.get("language") or row.get("text_language")
    return Languages("clip").of_clip({"language": declared})


def with_known_aliases(
    attribute: str, values: Sequence[str], own: Mapping[str, Iterable[str]], language: Language
) -> dict[str, list[str]]:
    """Value -> wordings: the user's ``own``, then the known ones of English and of ``language``."""
    taken = {plain_words(value) for value in values}
    taken |= {plain_words(wording) for wordings in own.values() for wording in wordings}
    known = {value: known_wordings(attribute, value, language) - taken for value in values}
    claims: dict[str, int] = {}
    for wordings in known.values():
        for wording in wordings:
            claims[wording] = claims.get(wording, 0) + 1
    return {
        value: [*own.get(value, ()), *sorted(wording for wording in known[value] if claims[wording] == 1)]
        for value in values
    }


def known_wordings(attribute: str, value: str, language: Language) -> set[str]:
    """Other wordings of a value, as `plain_words` writes them."""
    found = {plain_words(value)}
    for each in (ENGLISH, language):
        found |= {plain_words(str(each.value(attribute, value)))}
        words = _number_words().get(each.code, ())
        numbers = {n for n, word in enumerate(words) if found & {str(n), word}}
        for n in numbers:
            found |= {str(n), words[n]}
        tables = each.facts.synonyms if each.facts else {}
        for key, others in (tables.get("digit" if numbers else attribute) or {}).items():
            group = {plain_words(str(word)) for word in (key, *others)}
            found |= group if found & group else set()
    return found - {plain_words(value)}


@cache
def _number_words() -> dict[str, list[str]]:
    read = yaml.safe_load(_NUMBERS.read_text(encoding="utf-8"))
    return {code: [plain_words(word) for word in words] for code, words in read.items()}
