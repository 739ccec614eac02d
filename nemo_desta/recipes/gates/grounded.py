"""The grounding gate: rejects answers that do not name the attribute that the prompt asks about.

"The gender is unknown." to a description with "Gender: male" teaches the model not to listen. A wrong value is left to
the fact check (`facts`), since prompts may calculate ("Add one to the digit").
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from nemo_desta.errors import ConfigError
from nemo_desta.recipes.gates.language import names_language
from nemo_desta.recipes.gates.text import Seen
from nemo_desta.recipes.gates.wordings import wordings
from nemo_desta.recipes.items import Rejection
from nemo_desta.recipes.languages import ENGLISH, Language


@dataclass(frozen=True)
class GroundedConfig:
    """``attributes``: those to check; None: all. Only closed sets count: attributes with at most ``max_values`` values
    in the corpus. ``kinds``: kinds of prompts whose answer must name a value (or a word that belongs to the
    attribute); in the other kinds only evasions are rejected. With ``describe`` among them, an answer to a prompt of
    that kind that requires no attribute must name a value of the description or most of what is said. Answers to
    prompts of kind ``repeat`` must have most of the transcript's words.

    Not checked: values that the description does not state, and prompts that ask for another language.
    """

    attributes: list[str] | None = field(
        default_factory=lambda: ["gender", "emotion", "digit", "language", "sound_class", "instrument"]
    )
    kinds: list[str] = field(default_factory=lambda: ["ask"])
    max_values: int = 60

    def __post_init__(self) -> None:
        if self.attributes is not None and not self.attributes:
            raise ConfigError("gates.grounded.attributes is empty; null checks all, gates.grounded=null turns it off")


class GroundedCheck:
    """``values``: attribute -> all values in the corpus, see `value_sets`; None: not known, every attribute counts as
    closed. ``language``: of the answers."""

    def __init__(
        self, config: GroundedConfig, language: Language = ENGLISH, values: Mapping[str, Collection[str]] | None = None
    ) -> None:
        self._config, self._words = config, wordings(language)
        facts = language.facts or ENGLISH.facts
        self._evasive = re.compile(facts.evasive) if facts.evasive else None
        self._any = {  # attribute -> every value, as the language writes it
            name: {str(language.value(name, value)).lower() for value in found}
            for name, found in (values or {}).items()
            if len(found) <= config.max_values
        }
        self._open = set(values or ()) - set(self._any)

    def __call__(self, seen: Seen) -> Rejection | None:
        wanted, config = self._config.attributes, self._config
        requires, kind = seen.row.get("prompt_requires") or (), seen.row.get("prompt_kind")
        asked = [name for name in requires if name not in self._open and (wanted is None or name in wanted)]
        if kind == "describe" and not requires:
            return self._described(seen)
        repeat = kind == "repeat" and "transcript" in requires and seen.transcripts
        if not (asked or repeat) or seen.row.get("unanswerable") or names_language(seen.prompt):
            return None
        if repeat and not self._words.repeats(seen.transcripts, seen.lower, cut=seen.truncated):
            return Rejection("not grounded", f"{seen.transcripts[:60]!r} is said, the answer is {seen.answer[:60]!r}")
        stated = self._words.stated(seen.row)
        for name in asked:
            values = stated.get(name)
            if not values or self._words.names(name, values, seen.lower):
                continue
            if evasion := self._evasion(name, seen.lower):
                return Rejection(
                    "not grounded", f"{name} is {'/'.join(sorted(values))}, the answer evades: {evasion!r}"
                )
            if kind in config.kinds and not self._names_any(name, seen.lower):
                return Rejection(
                    "not grounded",
                    f"{name} is {'/'.join(sorted(values))}, the answer names none: {seen.answer[:60]!r}",
                )
        return None

    def _described(self, seen: Seen) -> Rejection | None:
        told = "describe" not in self._config.kinds or self._words.tells(seen.row, seen.transcripts, seen.lower)
        if told is not False or names_language(seen.prompt):
            return None
        return Rejection("not grounded", f"names nothing of the description: {seen.answer[:60]!r}")

    def _names_any(self, name: str, text: str) -> bool:
        """Whether the text names any value of the attribute, or may do so in words that are not known here."""
        related = self._words.is_related(name, text)
        return related is None or related or self._words.names(name, self._any.get(name, ()), text)

    def _evasion(self, name: str, text: str) -> str | None:
        """The sentence that says that the attribute is not known."""
        if self._evasive is None:
            return None
        named = self._words.name(name)
        for found in self._evasive.finditer(text):
            start = max(text.rfind(mark, 0, found.start()) for mark in ".!?\n\u3002\uff01\uff1f") + 1
            sentence = re.split(r"[.!?\n\u3002\uff01\uff1f]", text[start:], maxsplit=1)[0]
            if named in sentence:
                return sentence.strip()[:80]
        return None
