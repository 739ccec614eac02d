"""Phrases which reveal that the LLM read a text about the clip; `nemo_desta.recipes.gates.leak` uses them.

The English ones are in leak_english.yaml, which describes their form.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nemo_desta.errors import ConfigError
from nemo_desta.recipes.languages import Language

_RECIPES = Path(__file__).parents[1]


@dataclass(frozen=True)
class Rule:
    """``pattern`` finds the phrase. ``triggers``: lower-case texts of which every match contains one; without triggers
    the rule is tried on every text. ``asked``: the rule does not apply to prompts that match this expression; in it,
    ``{noun}`` stands for the ways to ask for the written thing that the phrase names (`ASKED`).
    """

    name: str
    pattern: str
    triggers: tuple[str, ...] = ()
    asked: str | None = None


def load_lexicon(path: Path, part: str = "rules") -> tuple[dict[str, str], tuple[Rule, ...]]:
    """Read a lexicon file: the ways to ask for a written thing, by the thing, and the rules."""
    found = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return parse_lexicon(found if part == "rules" else found.get(part) or {"rules": ()})


def language_lexicon(
    language: Language, name: str, part: str = "rules"
) -> tuple[dict[str, str], tuple[Rule, ...]] | None:
    """The lexicon ``name`` ("leak" or "refusals") in a language file; None if it has none. ``part``: another lexicon
    inside it, which may be absent.

    Raises ``ConfigError``: another form, or an invalid expression."""
    found = getattr(language, name)
    if found is None:
        return None
    if isinstance(found, str):
        return load_lexicon(_RECIPES / found, part)
    try:
        asked, rules = parse_lexicon(found if part == "rules" else found.get(part) or {"rules": ()})
        for rule in rules:
            re.compile(rule.pattern)
            re.compile((rule.asked or "").replace("{noun}", "x"))
    except re.error as error:
        raise ConfigError(
            f"language {language.code!r}: {name}: {error.pattern!r:.80} is no regular expression: {error}"
        ) from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"language {language.code!r}: {name} must have the form of leak_english.yaml ({error})"
        ) from None
    return asked, rules


def parse_lexicon(found: Mapping[str, Any]) -> tuple[dict[str, str], tuple[Rule, ...]]:
    """The lexicon in a mapping with the keys of leak_english.yaml."""
    named = {name: "|".join(words) for name, words in found.get("lists", {}).items()}

    def whole(pieces: str | Sequence[str]) -> str:
        return re.sub(r"<([a-z_]+)>", lambda name: named[name[1]], "".join(pieces))

    for name, pieces in found.get("patterns", {}).items():  # a pattern may contain those above it
        named[name] = whole(pieces)
    rules = [
        Rule(
            rule["name"],
            whole(rule["pattern"]),
            tuple(rule.get("triggers", ())),
            whole(rule["asked"]) if "asked" in rule else None,
        )
        for rule in found["rules"]
    ]
    return found.get("asked", {}), tuple(rules)


#: Written thing in a phrase -> how a prompt asks for it; the English rules.
ASKED, ENGLISH = load_lexicon(Path(__file__).with_name("leak_english.yaml"))
#: Language -> rules.
LEXICON = {"en": ENGLISH}
