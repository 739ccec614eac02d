"""Sets of prompts by name: the pool in ``pool/``, the pool combined with output formats, and plain.yaml."""

import itertools
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from nemo_desta.errors import ConfigError
from nemo_desta.recipes.languages import ENGLISH, Language, load_language, shipped_languages
from nemo_desta.recipes.prompts.constraints import Constraint, parse_constraint
from nemo_desta.recipes.prompts.draw import PromptPool
from nemo_desta.recipes.prompts.fill import ValueLists
from nemo_desta.recipes.prompts.prompt import Prompt, load_prompts, parse_prompts, text_hash
from nemo_desta.sources import resolve_source

SETS = ("composed", "pool", "plain")

_RECIPES = Path(__file__).parents[1]


def prompt_set(
    given: str | os.PathLike[str] | Sequence[Any],
    *,
    seed: int = 0,
    values: ValueLists | None = None,
    language: Language = ENGLISH,
) -> PromptPool:
    """The pool of prompts that a config names.

    ``given``: ``pool`` (our own prompts); ``composed`` (the pool, and each of its prompts with each suitable format,
    wording and numbers chosen by ``seed``); ``plain`` (short questions for small LLMs, English only); a YAML or JSONL
    file (also ``package:<path>``); or a list of prompts or mappings. ``values``: see `PromptPool`. ``language``: of
    the set, or of the given prompts.

    Raises ``FileNotFoundError``: neither a set nor a file; ``ValueError``: invalid prompts; ``ConfigError``: a set in
    a language that has none.
    """
    if not isinstance(given, (str, os.PathLike)):
        ready = given and all(isinstance(entry, Prompt) for entry in given)
        return PromptPool(given if ready else parse_prompts(given), values=values, language=language)
    if given == "plain":
        if language is not ENGLISH:
            raise ConfigError(f"prompts=plain is English; for language {language.code!r} use the pool or a file")
        return PromptPool(load_prompts(_RECIPES / "prompts/plain.yaml"), values=values)
    if given in SETS:
        bases = base_prompts(language)
        composed = compose(bases, seed=seed, language=language) if given == "composed" else []
        return PromptPool([*bases, *composed], values=values, language=language)
    path = resolve_source(str(given))
    if not Path(path).is_file():
        raise FileNotFoundError(f"prompts: {str(given)!r} is no file and none of the sets {', '.join(SETS)}")
    return PromptPool(load_prompts(path), values=values, language=language)


@lru_cache(maxsize=16)
def base_prompts(language: Language = ENGLISH) -> tuple[Prompt, ...]:
    """Our own pool, templates unfilled. Raises ``ConfigError``: there is none in this language."""
    if language.prompts is None:
        have = ", ".join(code for code in shipped_languages() if load_language(code).prompts)
        raise ConfigError(f"prompts: no pool in language {language.code!r}, only in {have}; give a file of prompts")
    files = [entry for entry in language.prompts if isinstance(entry, str)]
    if not files:
        return tuple(parse_prompts(language.prompts, where=f"prompts of language {language.code}"))
    return tuple(prompt for name in files for prompt in load_prompts(_RECIPES / name))


def compose(bases: Sequence[Prompt], *, seed: int = 0, language: Language = ENGLISH) -> list[Prompt]:
    """Each base once with each suitable format, wording and numbers drawn by ``seed``."""
    composed = []
    for base in bases:
        rng = random.Random(f"{seed}:{base.prompt_id}")
        for form in _formats(language):
            if form.suits(base):
                composed.append(form.put(base, rng.choice(form.arguments(base)), rng.choice(form.wordings)))
    return composed


def compositions(bases: Sequence[Prompt]) -> Iterator[Prompt]:
    """Every base in every suitable format, with every wording and number: all that `compose` draws from."""
    for base, form in itertools.product(bases, _formats()):
        if form.suits(base):
            for args, wording in itertools.product(form.arguments(base), form.wordings):
                yield form.put(base, args, wording)


@dataclass(frozen=True)
class Format:
    """An output format to ask for, see ``formats.yaml``. ``kinds``: kinds of prompts that it suits; ``args``: its
    possible arguments, or "requires": the names that the prompt requires; ``single``: only for prompts about one
    attribute; ``spoken`` False: not for prompts about the transcript.
    """

    name: str
    kinds: Sequence[str]
    wordings: Sequence[str]
    args: Any = ((),)
    single: bool = False
    spoken: bool = True

    def suits(self, base: Prompt) -> bool:
        """Whether the format suits a prompt. Prompts that already ask for a format are excluded."""
        if base.constraint is not None or base.kind not in self.kinds:
            return False
        about_attributes = not {"transcript", "caption"} & set(base.requires)
        if self.args == "requires" and not (base.requires and about_attributes):
            return False
        if not self.spoken and "transcript" in base.requires:
            return False
        return not self.single or (len(base.requires) == 1 and about_attributes)

    def arguments(self, base: Prompt) -> Sequence[Sequence[str | int]]:
        return (base.requires,) if self.args == "requires" else self.args

    def put(self, base: Prompt, args: Sequence[str | int], wording: str) -> Prompt:
        """``{0}``, ``{1}``: an argument; ``{all}``: all, quoted; ``{prompt}``: the base, else it comes first."""
        *others, last = [f'"{arg}"' for arg in args] or [""]
        shown = wording.replace("{all}", f"{', '.join(others)} and {last}" if others else last)
        for number, arg in enumerate(args):
            shown = shown.replace(f"{{{number}}}", str(arg))
        text = shown.replace("{prompt}", base.prompt) if "{prompt}" in shown else f"{base.prompt} {shown}"
        name = f"{base.prompt_id}+{self.name}-{text_hash(text)}"
        return replace(base, prompt_id=name, prompt=text, constraint=Constraint(self.name, tuple(args)))


@lru_cache(maxsize=16)
def _formats(language: Language = ENGLISH) -> tuple[Format, ...]:
    entries, where = language.formats or (), f"formats of language {language.code}"
    if isinstance(entries, str):
        entries, where = yaml.safe_load((_RECIPES / entries).read_text(encoding="utf-8")), Path(entries).name
    try:
        formats = tuple(Format(**entry) for entry in entries)
    except TypeError as error:
        raise ConfigError(f"{where}: a format has the keys of formats.yaml ({error})") from None
    for number, form in enumerate(formats, start=1):
        for args in () if form.args == "requires" else form.args:
            parse_constraint({"name": form.name, "args": args}, f"{where}:{number}")
    return formats
