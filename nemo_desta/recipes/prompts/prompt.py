"""The type of a prompt, and reading prompts from files: one mapping per prompt, or groups with shared fields.

A prompt names the attributes that a description must contain for the prompt to be answerable (``requires``).
Otherwise the LLM would answer "no" only because the description does not mention a thing, and learn false negatives.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from nemo_desta.recipes.prompts.constraints import Constraint, parse_constraint

#: Slots of a template that are filled per clip, see `nemo_desta.recipes.prompts.fill`.
SLOT = re.compile(r"\{(options|options_or_none|choices|pair|value)\}")


@dataclass(frozen=True)
class Prompt:
    """One prompt. ``tasks``: documentation of its topic; ``domains``: domains that it fits, empty = all.

    ``requires``: attribute names, all of which the description must hold; also ``transcript`` and ``caption``. A
    template (``{options}``, ``{value}``, ...) is about the first of them. ``kind``: the type of request, such as
    ``describe`` or ``yes_no``; draws are uniform over kinds. ``constraint``: the format that it asks for, if any.
    ``weight``: how often it is drawn, relative to other prompts. ``probed``: right answers and all answers in a probe
    (`nemo_desta.recipes.probe`), for the report.
    """

    prompt_id: str
    prompt: str
    tasks: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    kind: str = ""
    constraint: Constraint | None = None
    weight: float = 1.0
    probed: tuple[int, int] | None = None


def parse_prompts(entries: Sequence[Mapping[str, Any]], *, where: str = "prompts") -> list[Prompt]:
    """Prompts from plain mappings with the fields of `Prompt`. Raises ``ValueError`` naming an invalid entry.

    An entry with ``prompts`` (a list of texts) instead of ``prompt_id`` and ``prompt`` is a group: all its prompts
    share the other fields, and each id is derived from these and the text.
    """
    prompts: dict[str, Prompt] = {}
    for number, entry in enumerate(entries, start=1):
        at = f"{where}:{number}"
        if not isinstance(entry, Mapping):
            raise ValueError(f"{at}: expected one object per prompt, found a {type(entry).__name__}")
        for prompt in _group(entry, at) if "prompts" in entry else [_prompt(entry, at)]:
            if prompt.prompt_id in prompts:
                raise ValueError(f"{at}: prompt_id {prompt.prompt_id!r} was seen before; each prompt has its own")
            prompts[prompt.prompt_id] = prompt
    if not prompts:
        raise ValueError(f"{where}: no prompts")
    return list(prompts.values())


def load_prompts(path: str | os.PathLike[str]) -> list[Prompt]:
    """Prompts from a YAML file (a list) or a JSONL file (one per line, no blank lines between them)."""
    try:
        content = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 (byte {error.start} is {error.object[error.start]:#04x})") from None
    if Path(path).suffix in (".yaml", ".yml"):
        try:
            entries = yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
        if not isinstance(entries, list):
            raise ValueError(f"{path}: expected a list of prompts or groups, found a {type(entries).__name__}")
        return parse_prompts(entries, where=str(path))
    entries = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON ({error.msg} at character {error.pos})") from None
    return parse_prompts(entries, where=str(path))


def read_probed(entry: Any) -> tuple[int, int] | None:
    """``[right, all]`` as a tuple; None for anything else."""
    whole = isinstance(entry, (list, tuple)) and len(entry) == 2 and all(type(number) is int for number in entry)
    return tuple(entry) if whole and 0 <= entry[0] <= entry[1] and entry[1] > 0 else None


def text_hash(text: str) -> str:
    """Eight hex digits, a hash of the text; used in ids."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _group(entry: Mapping[str, Any], at: str) -> list[Prompt]:
    shared = dict(entry)
    texts = shared.pop("prompts")
    if clash := {"prompt", "prompt_id"} & set(shared):
        raise ValueError(f"{at}: a group of prompts has no {sorted(clash)[0]!r} of its own")
    if not isinstance(texts, Sequence) or isinstance(texts, str) or not texts:
        raise ValueError(f"{at}: prompts must be a list of texts, found {texts!r}")
    head = [*(shared.get("domains") or ["any"])[:1], shared.get("kind") or "ask", *(shared.get("requires") or ())]
    prompts = []
    for number, text in enumerate(texts, start=1):
        name = "-".join(map(str, [*head, text_hash(text)])) if isinstance(text, str) else "?"
        prompts.append(_prompt({**shared, "prompt_id": name, "prompt": text}, f"{at}, text {number}"))
    return prompts


def _prompt(entry: Mapping[str, Any], at: str) -> Prompt:
    known = {field.name for field in fields(Prompt)}
    if unknown := set(entry) - known:
        raise ValueError(f"{at}: unknown field {sorted(unknown)[0]!r}; a prompt has {', '.join(sorted(known))}")
    values = dict(entry)
    values.setdefault("kind", "")
    for name in ("prompt_id", "prompt", "kind"):
        if not isinstance(values.get(name), str) or not (values[name].strip() or name == "kind"):
            raise ValueError(f"{at}: {name} must be text, found {values.get(name)!r}")
    for name in ("tasks", "requires", "domains"):
        items = values.get(name) or ()
        if isinstance(items, str) or not all(isinstance(item, str) for item in items):
            raise ValueError(f"{at}: {name} must be a list of names, found {items!r}")
        values[name] = tuple(items)
    if values.get("constraint") is not None:
        values["constraint"] = parse_constraint(values["constraint"], at)
    weight = values.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise ValueError(f"{at}: weight must be a number above 0, found {weight!r}")
    if (probed := values.get("probed")) is not None:
        values["probed"] = read_probed(probed)
        if values["probed"] is None:
            raise ValueError(f"{at}: probed must be [right answers, all answers], found {probed!r}")
    if (slot := SLOT.search(values["prompt"])) and not values["requires"]:
        raise ValueError(f"{at}: {slot.group()} is filled from the first name of requires, and there is none")
    return Prompt(**values)
