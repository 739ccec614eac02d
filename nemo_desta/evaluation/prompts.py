"""Named prompts: how an item becomes messages, and how its answer becomes the prediction that a scorer reads.

Prompt and extraction are part of a result: papers with different prompts report different numbers for one model.
Every report holds the variant's name and a hash over prompt, extraction and scorer. The wordings are our own and
follow the papers' descriptions.
"""

import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from nemo_desta.config import nearest
from nemo_desta.errors import ConfigError
from nemo_desta.evaluation.files import Item

Message = dict[str, Any]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FOCUS = "Focus on the audio clips and the instruction."
SENTENCE = "The correct answer is:"
INDEX_RULES = (
    "You answer multiple-choice questions about audio. The options are numbered from 0, each as (index) text. Think "
    "as long as you need, then give the index of the best option, one whole number and nothing else, between "
    "<answer> and </answer>. Right: <answer>2</answer>. Wrong: <answer>(2) a dog</answer>, <answer>dog</answer>."
)


@dataclass(frozen=True)
class Variant:
    """``ask``: an item and the model's locator tag -> messages without audios. ``extract``: the answer's text (without
    its thought) and the item -> the prediction."""

    name: str
    ask: Callable[[Item, str], list[Message]]
    extract: Callable[[str, Item], str]


def variant(name: str) -> Variant:
    """A variant by name.

    Raises:
        ConfigError: no such variant.
    """
    if name not in VARIANTS:
        raise ConfigError(f"unknown prompt variant '{name}'.{nearest(name, VARIANTS)}")
    return VARIANTS[name]


def messages(item: Item, chosen: Variant, tag: str) -> list[Message]:
    """The variant's messages with the item's clip, if it has one, at the locator."""
    asked = chosen.ask(item, tag if item.audio is not None else "")
    if item.audio is not None:
        holder = next(message for message in asked if tag in message["content"])
        holder["audios"] = [{"audio": str(item.audio)}]
    return [{**message, "content": message["content"].strip()} for message in asked]


def fingerprint(chosen: Sequence[Variant], scorer: ModuleType) -> str:
    """Twelve hex digits of a hash over the source code of prompts, extraction and scorer, and of every module of this
    package that the scorer uses."""
    sources = [inspect.getsource(part) for one in chosen for part in (one.ask, one.extract)]
    sources += [inspect.getsource(module) for module in _used_by(scorer)]
    names = [one.name for one in chosen]
    return hashlib.sha256("\0".join([*names, FOCUS, SENTENCE, INDEX_RULES, *sources]).encode()).hexdigest()[:12]


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


# ---- prompts


def _question(item: Item, tag: str) -> list[Message]:
    return [{"role": "user", "content": f"{tag}\n{item.question}"}]


def _letters(item: Item, tag: str) -> list[Message]:
    """As in AIR-Bench and MMSU: lettered lines, the answer is one letter."""
    lines = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, item.choices, strict=False))
    last = LETTERS[len(item.choices) - 1]
    text = f"{item.question}\n{lines}\nRespond with one letter from A to {last} and nothing else."
    return [{"role": "user", "content": f"{tag}\n{text}"}]


def _quoted(item: Item, tag: str) -> list[Message]:
    """DeSTA2.5-Audio's first multiple-choice prompt: quoted options, answer without explanation."""
    options = " ".join(f'"{choice}"' for choice in item.choices)
    text = f"{item.question} Choose one of the options without explanation. The answer could be {options}"
    return [{"role": "system", "content": FOCUS}, {"role": "user", "content": f"{tag}\n{text}"}]


def _sentence(item: Item, tag: str) -> list[Message]:
    """DeSTA2.5-Audio's second: a fixed sentence, "or" before the last option."""
    *first, last = (f'"{choice}"' for choice in item.choices)
    options = f"{', '.join(first)} or {last}" if first else last
    text = f'{item.question} Choose from {options}. Answer with the sentence: {SENTENCE} "..."'
    return [{"role": "system", "content": FOCUS}, {"role": "user", "content": f"{tag}\n{text}"}]


def _indices(item: Item, tag: str) -> list[Message]:
    """ALARM's: numbered options, an index between answer tags; audio before the text."""
    options = "\n".join(f"({i}) {choice}" for i, choice in enumerate(item.choices))
    text = f"<question>{item.question}</question>\n<options>\n{options}\n</options>"
    return [{"role": "system", "content": INDEX_RULES}, {"role": "user", "content": f"{tag}\n{text}"}]


# ---- extraction


def _as_it_is(answer: str, item: Item) -> str:
    return answer.strip()


def _behind_sentence(answer: str, item: Item) -> str:
    """The text after the fixed sentence, without quotes; the whole answer if the sentence is missing."""
    _, found, rest = answer.partition(SENTENCE)
    return (rest if found else answer).strip().strip(".").strip("\"'“”").strip()


def _by_index(answer: str, item: Item) -> str:
    """The option with the index between answer tags; text that is no valid index stays unchanged."""
    found = re.search(r"<answer>\s*(.*?)\s*</answer>", answer, flags=re.DOTALL)
    inside = found[1] if found else answer.strip()
    index = int(inside) if re.fullmatch(r"[0-9]{1,3}", inside) else -1
    return item.choices[index] if 0 <= index < len(item.choices) else inside


VARIANTS: dict[str, Variant] = {
    one.name: one
    for one in (
        Variant("question", _question, _as_it_is),
        Variant("letters", _letters, _as_it_is),
        Variant("desta25_quoted", _quoted, _as_it_is),
        Variant("desta25_sentence", _sentence, _behind_sentence),
        Variant("alarm_index", _indices, _by_index),
    )
}

#: Default variant of each benchmark: its authors' prompt where they published one.
DEFAULTS: dict[str, str] = {
    "mmau": "desta25_sentence",
    "mmar": "desta25_sentence",
    "mmsu": "letters",
    "air_bench": "letters",
    "sakura": "question",
    "speech_ifeval": "question",
    "voicebench": "question",
    "dynamic_superb": "question",
}


def default_variant(benchmark: str, choices: Sequence[str]) -> str:
    """The benchmark's default; the plain question for items without options."""
    return DEFAULTS.get(benchmark, "question") if choices else "question"
