"""Tasks of the demo, their values, the true value of a row, and the answer parser.

A task is a question about a clip. Its true value comes from a manifest row (attribute, transcript or domain), the
model's value from the text of its answer. The texts of the tasks are in ``assets/world.yaml``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Task:
    """One question. ``key``: its name in a JSON answer; ``values``: all values, None for free text."""

    name: str
    domain: str
    key: str
    values: tuple[str, ...] | None


def load_texts(name: str) -> dict[str, Any]:
    """A file of ``assets/``, with tuples for its lists."""

    def frozen(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: frozen(inner) for key, inner in value.items()}
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    return frozen(yaml.safe_load((Path(__file__).parent / "assets" / name).read_text(encoding="utf-8")))


_WORLD = load_texts("world.yaml")
DIGITS, COMMANDS, SENTENCES, SOUND_GROUPS = (
    _WORLD[name] for name in ("digits", "commands", "sentences", "sound_groups")
)
_LISTED = {
    "language": tuple(SENTENCES),
    "digit": DIGITS,
    "word": DIGITS + COMMANDS,
    "sound_class": tuple(SOUND_GROUPS),
    "sound_group": tuple(dict.fromkeys(SOUND_GROUPS.values())),
}
TASKS = {
    name: Task(name, task["domain"], task["key"], task.get("values", _LISTED.get(name)))
    for name, task in _WORLD["tasks"].items()
}


def gold(row: Mapping[str, Any], task: str) -> str | None:
    """The true value of ``task`` for a manifest row; None if the row has none."""
    attributes = row.get("attributes") or {}
    transcript = row.get("transcript")
    if task == "domain":
        return row["domain"] if row["domain"] in TASKS["domain"].values else None
    if task == "transcript":
        return _bare(transcript) if transcript else None
    if task in ("digit", "word"):
        if task == "digit" and attributes.get("digit") is not None:
            return DIGITS[int(attributes["digit"])]
        word = _bare(transcript).lower() if transcript else None
        return word if word in TASKS[task].values else None
    value = attributes.get(task)
    return None if value is None else str(value)


def tasks_of(row: Mapping[str, Any]) -> list[str]:
    """The tasks with a true value in the row."""
    return [name for name in TASKS if gold(row, name) is not None]


def parse_answer(task: str, answer: str) -> str | None:
    """The value of ``task`` in an answer; None if it contains none, or several different ones.

    A think block and a leading "Yes,"/"No," are skipped; case is ignored; the longest match wins ("North American
    English" is not "American English"); digits may be written as numerals. For the transcript: the text after
    "says:", bare.
    """
    text = re.sub(r"^(yes|no),\s*", "", answer.rsplit("</think>", 1)[-1].strip(), flags=re.IGNORECASE)
    values = TASKS[task].values
    if values is None:
        return _bare(re.sub(r'^.*?says:\s*|^\{"transcript": "|"\}$', "", text)) or None
    if task in ("digit", "word"):
        text = re.sub(r"\b\d\b", lambda m: DIGITS[int(m.group())], text)
    longest_first = sorted(values, key=len, reverse=True)
    pattern = "|".join(rf"(?<!\w){re.escape(value)}(?!\w)" for value in longest_first)
    found = {match.lower() for match in re.findall(pattern, text, flags=re.IGNORECASE)}
    if len(found) != 1:
        return None
    name = found.pop()
    return next(value for value in values if value.lower() == name)


def parse_yes_no(answer: str) -> str | None:
    """ "yes" or "no", the first of the two words in the answer; None if neither is there."""
    match = re.search(r"\b(yes|no)\b", answer.rsplit("</think>", 1)[-1], flags=re.IGNORECASE)
    return match.group().lower() if match else None


def _bare(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
