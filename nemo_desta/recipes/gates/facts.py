"""The fact check: rejects answers with a wrong value of the attribute that the prompt asks about.

Only attributes with a small closed set of values in words can be checked (gender, emotion, accent). A false alarm
costs a row, a miss costs nothing, so an answer that hedges or also names the true value passes.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nemo_desta.errors import ConfigError
from nemo_desta.recipes.gates.text import Seen
from nemo_desta.recipes.items import Rejection
from nemo_desta.recipes.languages import ENGLISH, Language


@dataclass(frozen=True)
class FactsConfig:
    """``values``: attribute -> all values in the corpus, ``{gender: [male, female]}``; a recipe reads them from the
    corpus itself. ``attributes``: those to check, None for all closed sets. ``max_values``: an attribute with more
    values is not a closed set. ``synonyms``: attribute -> value -> more words for it, in addition to
    those of the language file.

    Leave out attributes that prompts calculate with ("Add one to the spoken digit").
    """

    values: dict[str, Any] = field(default_factory=dict)
    attributes: list[str] | None = None
    max_values: int = 30
    synonyms: dict[str, Any] = field(default_factory=dict)


class FactCheck:
    """``values``: attribute -> all values in the corpus, see `value_sets`. ``language``: of the answers; values and
    clips are given in English and compared in that language."""

    def __init__(
        self,
        values: Mapping[str, Collection[str]],
        config: FactsConfig = FactsConfig(),
        language: Language = ENGLISH,
    ) -> None:
        if not values:
            raise ConfigError("gates.facts needs the values that attributes may have: facts.values is empty")
        wanted = set(values) if config.attributes is None else set(config.attributes)
        if unknown := wanted - set(values):
            raise ConfigError(
                f"gates.facts.attributes: {sorted(unknown)[0]!r} is no attribute of the corpus; it has "
                f"{', '.join(sorted(values)) or 'none'}"
            )
        self._language, facts = language, language.facts or ENGLISH.facts
        none = r"(?!)"
        self._before, self._after, self._hedged = (
            re.compile(pattern or none) for pattern in (facts.negated_before, facts.negated_after, facts.hedged)
        )
        self._words: dict[str, tuple[re.Pattern[str], dict[str, str]]] = {}  # attribute -> word in lower case -> value
        for name in sorted(wanted):
            known = set().union(*(_texts(language.value(name, value)) for value in values[name]))
            if not 2 <= len(known) <= config.max_values:
                continue
            words = {value: value for value in known}
            for table in (facts.synonyms.get(name, {}), config.synonyms.get(name, {})):
                for value, others in table.items():
                    for word in others if value.lower() in known else ():
                        words.setdefault(word.lower(), value.lower())
            longest_first = sorted(words, key=len, reverse=True)  # "young adult" before "adult"
            before, after = (r"(?<!\w)", r"(?!\w)") if language.spaces else ("", "")
            pattern = re.compile(f"{before}(?:{'|'.join(map(re.escape, longest_first))}){after}")
            self._words[name] = pattern, words

    def __call__(self, seen: Seen) -> Rejection | None:
        asked = seen.row.get("prompt_requires") or seen.clip.get("prompt_requires") or ()
        attributes = seen.clip.get("attributes") or {}
        for name in asked:
            if name in self._words and (value := attributes.get(name)) is not None:
                true, named = _texts(self._language.value(name, value)), self._named(name, seen.lower)
                if (wrong := named - true) and not named & true and not self._hedged.search(seen.lower):
                    detail = f"{name} is {'/'.join(sorted(true))}, the answer says {min(wrong)}"
                    return Rejection("contradicts attributes", detail)
        return None

    def _named(self, name: str, text: str) -> set[str]:
        """Values of the attribute that the text names without a negation."""
        pattern, words = self._words[name]
        return {
            words[found[0]]
            for found in pattern.finditer(text)
            if not self._before.search(text[: found.start()].rstrip(" \"'*_:")[-60:])
            and not self._after.match(text[found.end() :][:60])
        }


def value_sets(clips: Iterable[Mapping[str, Any]], max_values: int = 1000) -> dict[str, set[str]]:
    """Attribute -> its values in the clips, without attributes of floats or of more than ``max_values`` values."""
    values: dict[str, set[str]] = {}
    open_sets: set[str] = set()
    for clip in clips:
        for name, value in (clip.get("attributes") or {}).items():
            if name in open_sets or value is None:
                continue
            if isinstance(value, float) or len(values.setdefault(name, set())) > max_values:
                open_sets.add(name)
                values.pop(name, None)
                continue
            values[name] |= _texts(value)
    return {name: found for name, found in values.items() if found and len(found) <= max_values}


def _texts(value: Any) -> set[str]:
    if isinstance(value, (list, tuple, set)):
        return set().union(*map(_texts, value))
    if isinstance(value, bool):
        return {"yes" if value else "no"}
    text = str(value).strip().lower()
    return {text} if text else set()
