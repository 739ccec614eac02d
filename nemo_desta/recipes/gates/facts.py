"""The fact check: rejects answers with a wrong value of the attribute that the prompt asks about.

Only attributes with a small closed set of values in words can be checked (gender, emotion, accent). A false alarm
costs a row, a miss costs nothing, so an answer that hedges or also names the true value passes.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nemo_desta.errors import ConfigError
from nemo_desta.recipes.gates.text import Seen
from nemo_desta.recipes.items import Rejection

#: Other words for a value, by attribute; matched as whole words.
SYNONYMS: Mapping[str, Mapping[str, list[str]]] = yaml.safe_load(
    Path(__file__).with_name("facts.yaml").read_text(encoding="utf-8")
)
_NEGATED = re.compile(
    r"(?:\bnot|n't|\bnever|\bno|\bneither|\bnor|\bwithout|\brather than|\binstead of|\bunlike|\bless)"
    r"(?: (?:a|an|the|any|at|all|really|very|particularly|sound|sounding|seem|be|is|of|being|especially|likely|to))*$"
)
_HEDGED = re.compile(
    r"\b(?:or|either|might|may|could|perhaps|possibly|unclear|hard to (?:tell|say)|not sure|uncertain|"
    r"(?:can|could) ?not (?:tell|say|determine)|can't (?:tell|say|determine))\b"
)


@dataclass(frozen=True)
class FactsConfig:
    """``values``: attribute -> all values in the corpus, ``{gender: [male, female]}``; a recipe reads them from the
    corpus itself. ``attributes``: those to check, None for all closed sets. ``max_values``: an attribute with more
    values is not a closed set. ``synonyms``: attribute -> value -> more words for it, in addition to `SYNONYMS`.

    Leave out attributes that prompts calculate with ("Add one to the spoken digit").
    """

    values: dict[str, Any] = field(default_factory=dict)
    attributes: list[str] | None = None
    max_values: int = 30
    synonyms: dict[str, Any] = field(default_factory=dict)


class FactCheck:
    """``values``: attribute -> all values in the corpus, see `value_sets`."""

    def __init__(self, values: Mapping[str, Collection[str]], config: FactsConfig = FactsConfig()) -> None:
        if not values:
            raise ConfigError("gates.facts needs the values that attributes may have: facts.values is empty")
        wanted = set(values) if config.attributes is None else set(config.attributes)
        if unknown := wanted - set(values):
            raise ConfigError(
                f"gates.facts.attributes: {sorted(unknown)[0]!r} is no attribute of the corpus; it has "
                f"{', '.join(sorted(values)) or 'none'}"
            )
        self._words: dict[str, tuple[re.Pattern[str], dict[str, str]]] = {}  # attribute -> word in lower case -> value
        for name in sorted(wanted):
            known = set().union(*map(_texts, values[name]))
            if not 2 <= len(known) <= config.max_values:
                continue
            words = {value: value for value in known}
            for table in (SYNONYMS.get(name, {}), config.synonyms.get(name, {})):
                for value, others in table.items():
                    for word in others if value.lower() in known else ():
                        words.setdefault(word.lower(), value.lower())
            longest_first = sorted(words, key=len, reverse=True)  # "young adult" before "adult"
            pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")
            self._words[name] = pattern, words

    def __call__(self, seen: Seen) -> Rejection | None:
        asked = seen.row.get("prompt_requires") or seen.clip.get("prompt_requires") or ()
        attributes = seen.clip.get("attributes") or {}
        for name in asked:
            if name in self._words and (value := attributes.get(name)) is not None:
                true, named = _texts(value), self._named(name, seen.lower)
                if (wrong := named - true) and not named & true and not _HEDGED.search(seen.lower):
                    detail = f"{name} is {'/'.join(sorted(true))}, the answer says {min(wrong)}"
                    return Rejection("contradicts attributes", detail)
        return None

    def _named(self, name: str, text: str) -> set[str]:
        """Values of the attribute that the text names without a negation."""
        pattern, words = self._words[name]
        return {
            words[found[0]]
            for found in pattern.finditer(text)
            if not _NEGATED.search(text[: found.start()].rstrip(" \"'*_:")[-60:])
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
