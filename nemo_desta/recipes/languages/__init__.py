"""The languages that rows can be written in: one YAML file each, ``<code>.yaml`` in this folder or a file of the user.

A file has the words of descriptions and prompts, and what the gates need. Descriptions, prompts and gates read it
through `Language`; a part that a file leaves out is absent, and rows name the gates that could not judge them.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from nemo_desta.config import MISSING, nearest, parse
from nemo_desta.errors import ConfigError
from nemo_desta.recipes.unicode_scripts import SCRIPTS

__all__ = ["ENGLISH", "Language", "Languages", "load_language", "shipped_languages"]

_FOLDER = Path(__file__).parent
_CODE = re.compile(r"[a-z]{2,3}")


@dataclass(frozen=True)
class DescriptionWords:
    """``names``: attribute -> its name; ``seconds``: a duration, with ``{}`` for the number; ``speaker``: with ``{}``
    for one of ``ordinals``, or for a number; ``domains``: domain -> its name."""

    names: dict[str, str] = field(default_factory=dict)
    seconds: str = "{}s"
    speaker: str = "the {} speaker"
    ordinals: list[str] = field(default_factory=list)
    domains: dict[str, str] = field(default_factory=dict)
    yes: str = "yes"
    no: str = "no"


@dataclass(frozen=True)
class ChoiceWords:
    """How prompts list options: between them, before the last of three or more, of two; and the option "none"."""

    between: str = ", "
    last: str = ", or "
    pair: str = " or "
    none: str = "None of these"


@dataclass(frozen=True)
class FactWords:
    """``synonyms``: attribute -> value -> other words for it. ``related``: attribute -> words that answer a question
    about it without naming a value ("he"). Regular expressions: ``negated_before`` matches at the end of the text
    before a value, ``negated_after`` at the start of the text behind it, ``hedged`` anywhere, ``evasive``: phrases
    which say that something is not known."""

    synonyms: dict[str, Any] = field(default_factory=dict)
    related: dict[str, list[str]] = field(default_factory=dict)
    evasive: str | None = None
    negated_before: str | None = None
    negated_after: str | None = None
    hedged: str | None = None


@dataclass(frozen=True)
class GateWords:
    """Words of the language gate, separated by blanks: ``function_words``, which hardly occur in other languages, and
    ``answers``, frequent in short answers. ``other_languages``: expression for prompts that ask for another one.
    ``scripts``: those of the language besides Latin, by their names in unicode_scripts.yaml."""

    scripts: list[str] = field(default_factory=list)
    function_words: str = ""
    answers: str = ""
    other_languages: str | None = None


@dataclass(frozen=True, eq=False)
class Language:
    """A language file. ``code``: ISO 639-1; ``name``: in English; ``spaces``: blanks separate the words.

    ``values``: attribute (or ``any``) -> English value -> the word for it. ``refusals``, ``leak``: rules in the form
    of gates/leak_english.yaml. ``prompts``, ``formats``: in the form of a prompt file and of prompts/formats.yaml.
    """

    code: str = MISSING
    name: str = ""
    spaces: bool = True
    description: DescriptionWords | None = None
    values: dict[str, dict[str, str]] = field(default_factory=dict)
    choices: ChoiceWords = ChoiceWords()
    refusals: Any = None
    leak: Any = None
    facts: FactWords | None = None
    language: GateWords | None = None
    prompts: Any = None
    formats: Any = None

    @property
    def words(self) -> DescriptionWords:
        """The words of descriptions: English ones if the file has none."""
        return self.description or ENGLISH.description

    def value(self, name: str, value: Any) -> Any:
        """The word for an attribute's value, also for lists of values; unknown values, numbers and None stay."""
        if isinstance(value, (list, tuple)):
            return [self.value(name, one) for one in value]
        if isinstance(value, bool):
            return self.words.yes if value else self.words.no
        if not isinstance(value, str):
            return value
        key = " ".join(value.replace("_", " ").lower().split())
        found = self.values.get(name, {}).get(key)
        return self.values.get("any", {}).get(key, value) if found is None else found

    def localize(self, clip: Mapping[str, Any]) -> Mapping[str, Any]:
        """The clip with the values of all its attributes in this language. Transcripts and captions stay."""
        if not self.values:
            return clip

        def within(attributes: Any) -> Any:
            if not isinstance(attributes, Mapping):
                return attributes  # `check_described` reports it
            return {name: self.value(name, value) for name, value in attributes.items()}

        changed = {"attributes": within(clip.get("attributes"))}
        if isinstance(clip.get("speakers"), Mapping):
            changed["speakers"] = {speaker: within(value) for speaker, value in clip["speakers"].items()}
        if isinstance(clip.get("segments"), list):
            changed["segments"] = [
                {**one, "attributes": within(one.get("attributes"))} if isinstance(one, Mapping) else one
                for one in clip["segments"]
            ]
        return {**clip, **changed}

    def fingerprint(self) -> str:
        """A short hash of the file's contents: with a changed file, a recipe is another one."""
        return hashlib.sha256(repr(asdict(self)).encode()).hexdigest()[:12]


def shipped_languages() -> list[str]:
    """Codes of the language files in this package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


@cache  # one object per language: gates and pools are kept by it
def load_language(given: str) -> Language:
    """A language by its code (``de``) or file (``mine.yaml``). A code without a file gives a language without words.

    Raises ``ConfigError``: neither a code nor a file, an unknown key, a wrong type, an invalid expression.
    """
    if given in shipped_languages():
        return _read(_FOLDER / f"{given}.yaml", own=False)
    if given.endswith((".yaml", ".yml")):
        if not Path(given).is_file():
            raise ConfigError(f"language: no file {given!r}")
        return _read(Path(given), own=True)
    if not _CODE.fullmatch(given):
        raise ConfigError(
            f"language: {given!r} is no code, no file and not 'clip'.{nearest(given, shipped_languages())}"
        )
    return Language(code=given)


def _read(path: Path, own: bool) -> Language:
    try:
        plain = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML in UTF-8 ({' '.join(str(error).split())})") from None
    language = parse(Language, plain, where=str(path))
    if not _CODE.fullmatch(language.code):
        raise ConfigError(f"{path}: code must be two or three letters such as 'de', found {language.code!r}")
    for part, kind in {"refusals": dict, "leak": dict, "prompts": list, "formats": list}.items() if own else ():
        found = getattr(language, part)
        if (
            found is not None
            and not isinstance(found, kind)
            or kind is list
            and any(isinstance(x, str) for x in found or ())
        ):
            raise ConfigError(f"{path}: {part} must be a {kind.__name__} in the file itself, found {found!r:.80}")
    for name, table in language.values.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: values.{name} must be a mapping, English value -> word, found {table!r:.80}")
        if wrong := [key for pair in table.items() for key in pair if not isinstance(key, str)]:
            raise ConfigError(
                f"{path}: values.{name} must be texts (in quotation marks: yes, no, 1), found {wrong[0]!r}"
            )
    for script in language.language.scripts if language.language else ():
        if script not in SCRIPTS:
            raise ConfigError(f"{path}: language.scripts: unknown script {script!r}.{nearest(str(script), SCRIPTS)}")
    for part in (language.facts, language.language):
        for item in fields(part) if part is not None else ():
            if isinstance(pattern := getattr(part, item.name), str) and item.name not in ("function_words", "answers"):
                _check_pattern(pattern, f"{path}: {item.name}")
    return language


def _check_pattern(pattern: str, where: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{where}: {pattern!r} is no regular expression: {error}") from None


ENGLISH = load_language("en")


class Languages:
    """The languages of a run. ``setting``: a code, a file, or ``clip``: the ``language`` of each clip, English where
    a clip has none."""

    def __init__(self, setting: str = "en") -> None:
        self.by_clip = setting == "clip"
        self.default = ENGLISH if self.by_clip else load_language(setting)

    def of_clip(self, clip: Mapping[str, Any]) -> Language:
        """The language of the rows that a clip becomes. ``clip["language"]``: a code such as "de" or "de-DE", or the
        English name of a language with a file."""
        declared = str(clip.get("language") or "").lower().replace("_", "-").split("-")[0].strip()
        if not self.by_clip or not declared:
            return self.default
        return _of_code(_codes().get(declared, declared))

    def of_row(self, row: Mapping[str, Any]) -> Language:
        """The language that a row says it is written in: ``text_language``, else English."""
        code = row.get("text_language") or "en"
        if code == self.default.code:
            return self.default
        return _of_code(str(code))


def _of_code(code: str) -> Language:
    """Never a file's path: the code comes from a row or a clip."""
    return load_language(code) if _CODE.fullmatch(code) else _UNKNOWN


_UNKNOWN = Language(code="unknown")


@cache
def _codes() -> dict[str, str]:
    return {load_language(code).name.lower(): code for code in shipped_languages()}
