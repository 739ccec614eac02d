"""Quality gates: they reject rows that should not be trained on, and name the reason.

`RowGates` checks one row at a time, `Duplicates` compares a row with earlier rows, and `Decontamination` rejects
benchmark items before the LLM is queried. Rejected rows and reasons are written to ``rejected/``.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from nemo_desta.errors import ConfigError
from nemo_desta.recipes.gates import text
from nemo_desta.recipes.gates.decontaminate import Decontamination
from nemo_desta.recipes.gates.duplicates import Duplicates, DuplicatesConfig
from nemo_desta.recipes.gates.facts import FactCheck, FactsConfig, value_sets
from nemo_desta.recipes.gates.grounded import GroundedCheck, GroundedConfig
from nemo_desta.recipes.gates.language import LanguageGate, can_identify
from nemo_desta.recipes.gates.leak import LeakCheck
from nemo_desta.recipes.gates.loops import LoopGate
from nemo_desta.recipes.gates.refusals import RefusalGate
from nemo_desta.recipes.gates.text import CLOSING_TAGS, LengthGate, Seen, answer_of
from nemo_desta.recipes.items import Rejection
from nemo_desta.recipes.languages import Language, Languages
from nemo_desta.registry import Registry

__all__ = [
    "Decontamination",
    "Duplicates",
    "DuplicatesConfig",
    "FactCheck",
    "GATES",
    "GatesConfig",
    "REGENERABLE",
    "RowGates",
    "Seen",
    "answer_of",
    "value_sets",
]

#: Gates of ``gates.own``. A gate is called with a `Seen` row and returns a `Rejection` or None. Its attribute
#: ``regenerable``, if there is one, holds the reasons that belong to `REGENERABLE`.
GATES = Registry("gate", "nemo_desta.gates")

#: Reasons that another answer, generated with another seed, may avoid.
REGENERABLE = frozenset(
    {"empty", "not text", "truncated", "too short", "too long", "repetition loop", "wrong language"}
    | {"unexpected script", "refusal", "leak", "leak (judge)", "judge unclear", "contradicts attributes"}
    | {"not grounded", "assistant talk"}
    | {"no answer tags", "think block lost", "think block changed", "answer lost", "rewriter cut"}
    | {"rewriting too short", "rewriting too long"}
)

Gate = Callable[[Seen], Rejection | None]


@dataclass(frozen=True)
class GatesConfig:
    """The gates in their order; null (or false) turns one off.

    ``target_tokens``: [least, most] tokens of the whole target, by the LLM's tokenizer; ALARM's are [100, 612].
    ``truncated``: "keep" trains truncated answers without an end of turn, "drop" rejects them. ``facts``: off by
    default. ``closing_tags``: of think blocks, null for `CLOSING_TAGS`. ``duplicates``: read by `Duplicates`, not by
    `RowGates`. ``own``: further gates after these, each ``name`` (of `GATES`) or ``_target_`` with its arguments.
    """

    empty: bool | None = True
    not_text: bool | None = True
    truncated: str = "keep"
    length: LengthGate | None = field(default_factory=LengthGate)
    target_tokens: list[int] | None = None
    loops: LoopGate | None = field(default_factory=LoopGate)
    language: LanguageGate | None = field(default_factory=LanguageGate)
    refusals: RefusalGate | None = field(default_factory=RefusalGate)
    leak: bool | None = True
    grounded: GroundedConfig | None = field(default_factory=GroundedConfig)
    facts: FactsConfig | None = None
    closing_tags: list[str] | None = None
    duplicates: DuplicatesConfig | None = field(default_factory=DuplicatesConfig)
    own: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for gate in self.own:
            name, settings = GATES.read(gate)
            GATES.settings(name, settings)
        if self.truncated not in ("keep", "drop"):
            raise ConfigError(f"gates.truncated must be 'keep' or 'drop', found {self.truncated!r}")
        if (found := self.target_tokens) is not None and (len(found) != 2 or not 0 <= found[0] <= found[1]):
            raise ConfigError(f"gates.target_tokens must be [least, most] tokens, found {found}")


class RowGates:
    """All gates over one row; the first rejection counts. ``regenerable``: reasons that another answer may avoid.

    ``values``: values for the grounding gate, and for the fact check instead of those in ``config.facts``; see
    `value_sets`. ``languages``: of the
    run; a row is judged in the language that it names (``text_language``, English without it). ``count_tokens``: of a
    text, by the LLM's tokenizer, for ``target_tokens``.
    """

    def __init__(
        self,
        config: GatesConfig = GatesConfig(),
        *,
        values: Mapping[str, Collection[str]] | None = None,
        languages: Languages | None = None,
        count_tokens: Callable[[str], int] | None = None,
    ) -> None:
        self._config, self._languages = config, languages or Languages()
        self._count_tokens = count_tokens
        if config.target_tokens is not None and count_tokens is None:
            raise ConfigError("gates.target_tokens needs the LLM's tokenizer: engine=openai has it with tokenizer=...")
        self._values = values if values is not None or config.facts is None else config.facts.values
        self._own = [GATES.build(gate) for gate in config.own]
        self.regenerable = REGENERABLE.union(*(getattr(gate, "regenerable", ()) for gate in self._own))
        self._gates: dict[Language, list[Gate]] = {}
        self._of(self._languages.default)  # report an invalid setting now
        self._closing_tags = tuple(config.closing_tags or CLOSING_TAGS)

    def check(self, row: Mapping[str, Any], clip: Mapping[str, Any] | None = None) -> Rejection | None:
        """Why ``row`` is rejected, or None. ``clip``: its manifest row, if there is one."""
        language = self._languages.of_row(row)
        seen = Seen(row, clip, self._closing_tags, language)
        return next(filter(None, (gate(seen) for gate in self._of(language))), None)

    def absent_for(self, row: Mapping[str, Any]) -> list[str]:
        """The gates that are turned on and cannot judge the row, for lack of words in its language."""
        return self.absent(self._languages.of_row(row))

    def absent(self, language: Language) -> list[str]:
        """The same for all rows in a language."""
        config = self._config
        lacking = {
            "language": config.language and not (can_identify(language.code) or language.language),
            "refusals": config.refusals and language.refusals is None,
            "leak": config.leak and language.leak is None,
            "grounded": config.grounded and language.facts is None,
            "facts": config.facts and language.facts is None,
        }
        return [name for name, is_absent in lacking.items() if is_absent]

    def _of(self, language: Language) -> "list[Gate]":
        if language not in self._gates:
            config, absent = self._config, self.absent(language)
            gates: list[Gate | None] = [
                text.empty if config.empty else None,
                text.not_text if config.not_text else None,
                text.truncated if config.truncated == "drop" else None,
                config.length,
                self._target_tokens if config.target_tokens is not None else None,
                *(config.loops, config.language, config.refusals),
            ]
            if config.leak and "leak" not in absent:
                leak = LeakCheck.in_language(language)
                gates.append(lambda seen: leak.check(seen.row))
            if config.grounded is not None and "grounded" not in absent:
                gates.append(GroundedCheck(config.grounded, language, self._values))
            if config.facts is not None and "facts" not in absent:
                gates.append(FactCheck(self._values, config.facts, language))
            self._gates[language] = [gate for gate in (*gates, *self._own) if gate is not None]
        return self._gates[language]

    def _target_tokens(self, seen: Seen) -> Rejection | None:
        least, most = self._config.target_tokens
        if least <= (size := self._count_tokens(seen.response)) <= most:
            return None
        short = size < least
        wanted = f"expected at {'least' if short else 'most'} {least if short else most}"
        return Rejection("too short" if short else "too long", f"{size} tokens, {wanted}")
