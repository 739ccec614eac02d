"""Named prompts: how an item becomes messages, and how its answer becomes the prediction that a scorer reads.

Prompt and extraction are part of a result: papers with different prompts report different numbers for one model.
Every report holds the variant's name and a hash over prompt, extraction and scorer. The wordings are our own and
follow the papers' descriptions.
"""

import hashlib
import inspect
import re
import string
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from nemo_desta.config import nearest
from nemo_desta.core.think_tags import between_tags
from nemo_desta.errors import ConfigError
from nemo_desta.evaluation.files import Item
from nemo_desta.evaluation.scores import scorer_of

Message = dict[str, Any]
SENTENCE = "The correct answer is:"
_TEXTS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
_JINJA = Environment(undefined=StrictUndefined)


@dataclass(frozen=True)
class Variant:
    """``system``, ``user``: templates over an item. ``extract``: the answer's text (without its thought) and the item
    -> the prediction."""

    name: str
    system: str
    user: str
    extract: Callable[[str, Item], str]


def variant(name: str) -> Variant:
    """A variant by name. Raises ConfigError: no such variant."""
    if name not in VARIANTS:
        raise ConfigError(f"unknown prompt variant '{name}'.{nearest(name, VARIANTS)}")
    return VARIANTS[name]


def messages(item: Item, chosen: Variant, tag: str) -> list[Message]:
    """The variant's messages with the item's clip, if it has one, at the locator ``tag`` before the user's text."""
    fields = {"question": item.question, "choices": item.choices, "letters": string.ascii_uppercase}
    text = _JINJA.from_string(chosen.user).render(fields)
    asked: Message = {"role": "user", "content": text.strip()}
    if item.audio is not None:
        asked |= {"content": f"{tag}\n{text}".strip(), "audios": [{"audio": str(item.audio)}]}
    return [{"role": "system", "content": chosen.system}, asked] if chosen.system else [asked]


def fingerprint(chosen: Sequence[Variant], scorer: Any) -> str:
    """Twelve hex digits of a hash over the source code of prompts, extraction and scorer, and of every module of this
    package that the scorer uses, with its texts. ``scorer``: a module, or an object of a class in one."""
    scorer = scorer if isinstance(scorer, ModuleType) else sys.modules[type(scorer).__module__]
    sources = [text for one in chosen for text in (one.name, one.system, one.user, inspect.getsource(one.extract))]
    for module in _used_by(scorer):
        texts = Path(module.__file__).with_suffix(".yaml")
        sources += [inspect.getsource(module), texts.read_text("utf-8") if texts.is_file() else ""]
    return hashlib.sha256("\0".join([SENTENCE, *sources]).encode()).hexdigest()[:12]


def _used_by(module: ModuleType) -> list[ModuleType]:
    """The module and all modules of `nemo_desta.evaluation` that it imports from, directly or not, sorted by name."""
    room = __name__.rpartition(".")[0]
    found, waiting = {}, [module]
    while waiting:
        one = waiting.pop()
        if one.__name__ in found:
            continue
        found[one.__name__] = one
        for value in vars(one).values():
            name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
            if isinstance(name, str) and name.startswith(room) and name in sys.modules:
                waiting.append(sys.modules[name])
    return [found[name] for name in sorted(found)]


def _as_it_is(answer: str, item: Item) -> str:
    return answer.strip()


def _behind_sentence(answer: str, item: Item) -> str:
    """The text after the fixed sentence, without quotes; the whole answer if the sentence is missing."""
    _, found, rest = answer.partition(SENTENCE)
    return (rest if found else answer).strip().strip(".").strip("\"'“”").strip()


def _by_index(answer: str, item: Item) -> str:
    """The option with the index behind the last answer tag; text that is no valid index stays unchanged."""
    inside = between_tags(answer)
    index = int(inside) if re.fullmatch(r"[0-9]{1,3}", inside) else -1
    return item.choices[index] if 0 <= index < len(item.choices) else inside


_EXTRACT = {"whole": _as_it_is, "sentence": _behind_sentence, "index": _by_index}
VARIANTS: dict[str, Variant] = {
    name: Variant(name, given.get("system", ""), given["user"], _EXTRACT[given["extract"]])
    for name, given in _TEXTS["variants"].items()
}
#: Default variant of each benchmark.
DEFAULTS: dict[str, str] = _TEXTS["defaults"]


def default_variant(benchmark: str, choices: Sequence[str]) -> str:
    """The benchmark's default; the plain question for items without options."""
    if not choices:
        return "question"
    return DEFAULTS.get(benchmark) or getattr(scorer_of(benchmark), "PROMPT", "question")
