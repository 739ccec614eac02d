"""Sets of prompts by name: the pool in ``pool/``, and the pool combined with output formats."""

import itertools
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from nemo_desta.recipes.prompts.constraints import Constraint, parse_constraint
from nemo_desta.recipes.prompts.draw import PromptPool
from nemo_desta.recipes.prompts.fill import ValueLists
from nemo_desta.recipes.prompts.prompt import Prompt, load_prompts, parse_prompts, text_hash
from nemo_desta.sources import resolve_source

SETS = ("composed", "pool")

_FOLDER = Path(__file__).parent / "pool"


def prompt_set(
    given: str | os.PathLike[str] | Sequence[Any], *, seed: int = 0, values: ValueLists | None = None
) -> PromptPool:
    """The pool of prompts that a config names.

    ``given``: ``pool`` (our own prompts); ``composed`` (the pool, and each of its prompts with each suitable format,
    wording and numbers chosen by ``seed``); a YAML or JSONL file (also ``package:<path>``); or a list of prompts or
    mappings. ``values``: see `PromptPool`.

    Raises ``FileNotFoundError``: neither a set nor a file; ``ValueError``: invalid prompts.
    """
    if not isinstance(given, (str, os.PathLike)):
        ready = [entry for entry in given if isinstance(entry, Prompt)]
        return PromptPool(ready if len(ready) == len(given) and ready else parse_prompts(given), values=values)
    if given == "pool":
        return PromptPool(base_prompts(), values=values)
    if given == "composed":
        return PromptPool([*base_prompts(), *compose(base_prompts(), seed=seed)], values=values)
    path = resolve_source(str(given))
    if not Path(path).is_file():
        raise FileNotFoundError(f"prompts: {str(given)!r} is no file and none of the sets {', '.join(SETS)}")
    return PromptPool(load_prompts(path), values=values)


@lru_cache(maxsize=1)
def base_prompts() -> tuple[Prompt, ...]:
    """Our own pool, templates unfilled."""
    return tuple(p for name in ("any", "speech", "sound", "music") for p in load_prompts(_FOLDER / f"{name}.yaml"))


def compose(bases: Sequence[Prompt], *, seed: int = 0) -> list[Prompt]:
    """Each base once with each suitable format, wording and numbers drawn by ``seed``."""
    composed = []
    for base in bases:
        rng = random.Random(f"{seed}:{base.prompt_id}")
        for form in _formats():
            if form.suits(base):
                composed.append(form.put(base, rng.choice(form.arguments(base)), rng.choice(form.wordings)))
    return composed


def compositions(bases: Sequence[Prompt]) -> Iterator[Prompt]:
    """Every base in every suitable format, with every wording and number: all that `compose` draws from."""
    for base in bases:
        for form in _formats():
            if form.suits(base):
                for args, wording in itertools.product(form.arguments(base), form.wordings):
                    yield form.put(base, args, wording)


@dataclass(frozen=True)
class Format:
    """An output format to ask for. ``kinds``: kinds of prompts that it suits; ``choices``: its possible arguments,
    None: the names that the prompt requires; ``single``: only for prompts about one attribute; ``spoken`` False: not
    for prompts about the transcript.
    """

    name: str
    kinds: frozenset[str]
    choices: tuple[tuple[str | int, ...], ...] | None
    wordings: tuple[str, ...]
    single: bool = False
    spoken: bool = True

    def suits(self, base: Prompt) -> bool:
        """Whether the format suits a prompt. Prompts that already ask for a format are excluded."""
        if base.constraint is not None or base.kind not in self.kinds:
            return False
        attributes = [name for name in base.requires if name not in ("transcript", "caption")]
        if self.choices is None and (not attributes or len(attributes) < len(base.requires)):
            return False
        if not self.spoken and "transcript" in base.requires:
            return False
        return not self.single or (len(base.requires) == len(attributes) == 1)

    def arguments(self, base: Prompt) -> tuple[tuple[str | int, ...], ...]:
        return (base.requires,) if self.choices is None else self.choices

    def put(self, base: Prompt, args: tuple[str | int, ...], wording: str) -> Prompt:
        """``{0}``, ``{1}``: an argument; ``{all}``: all, quoted; ``{prompt}``: the base, else it comes first."""
        quoted = [f'"{arg}"' for arg in args]
        shown = wording.replace("{all}", " and ".join([", ".join(quoted[:-1]), quoted[-1]] if quoted[1:] else quoted))
        for number, arg in enumerate(args):
            shown = shown.replace(f"{{{number}}}", str(arg))
        text = shown.replace("{prompt}", base.prompt) if "{prompt}" in shown else f"{base.prompt} {shown}"
        name = f"{base.prompt_id}+{self.name}-{text_hash(text)}"
        return Prompt(name, text, base.tasks, base.requires, base.domains, base.kind, Constraint(self.name, args))


@lru_cache(maxsize=1)
def _formats() -> tuple[Format, ...]:
    file = _FOLDER.parent / "formats.yaml"
    entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    return tuple(_format(entry, f"{file.name}:{number}") for number, entry in enumerate(entries, start=1))


def _format(entry: Mapping[str, Any], at: str) -> Format:
    choices = None if entry.get("args") == "requires" else tuple(tuple(args) for args in entry.get("args") or [[]])
    for args in choices or ():
        parse_constraint({"name": entry["name"], "args": args}, at)
    options = {name: entry[name] for name in ("single", "spoken") if name in entry}
    return Format(entry["name"], frozenset(entry["kinds"]), choices, tuple(entry["wordings"]), **options)
