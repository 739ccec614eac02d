"""Tasks of the demo, their values, the true value of a row, and the answer parser.

A task is a question about a clip. Its true value comes from a manifest row (attribute, transcript or domain), the
model's value from the text of its answer. The values also cover the public corpora of the real-audio run.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COMMANDS = ("yes", "no", "go", "stop", "left", "right", "up", "down", "on", "off")

#: Sentences of the corpus by language. The first two English ones are those of the emotion corpus.
SENTENCES = {
    "English": (
        "Kids are talking by the door.",
        "Dogs are sitting by the door.",
        "The train leaves at noon.",
        "We are going to the market.",
        "She opened the window.",
        "The coffee is too hot.",
        "Birds are singing in the garden.",
        "Please close the blue box.",
    ),
    "German": ("Der Hund schläft im Garten.", "Wir gehen heute ins Kino.", "Das Wetter ist sehr schön."),
    "French": ("Le chat dort sur la chaise.", "Nous allons au marché demain.", "Le ciel est bleu ce matin."),
    "Spanish": ("El perro corre por el parque.", "Mañana vamos a la playa.", "La casa es muy grande."),
    "Italian": ("Il gatto dorme sul letto.", "Domani andiamo al mare.", "La pasta è molto buona."),
}

#: Sound class -> group. The first ten are those of the environmental-sound corpus, with its groups.
SOUND_GROUPS = {
    "dog barking": "animal",
    "rooster crowing": "animal",
    "rain": "nature",
    "sea waves": "nature",
    "fire crackling": "nature",
    "baby crying": "human non-speech",
    "person sneezing": "human non-speech",
    "clock ticking": "domestic",
    "helicopter": "vehicle",
    "chainsaw": "machine",
    "engine": "vehicle",
    "siren": "signal",
    "beeping": "signal",
    "bell": "signal",
    "birds chirping": "animal",
    "wind": "nature",
    "knocking": "domestic",
    "drum beat": "machine",
}


@dataclass(frozen=True)
class Task:
    """One question. ``key``: its name in a JSON answer; ``values``: all values, None for free text."""

    name: str
    domain: str
    key: str
    values: tuple[str, ...] | None


def _tasks() -> dict[str, Task]:
    tasks = [
        Task("gender", "speech", "gender", ("male", "female")),
        Task(
            "emotion",
            "speech",
            "emotion",
            ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgusted", "surprised"),
        ),
        Task("intensity", "speech", "intensity", ("normal", "strong")),
        Task(
            "accent",
            "speech",
            "accent",
            ("American English", "North American English", "British English", "Scottish English", "German", "Greek")
            + ("French", "French (Belgium)", "Spanish", "Italian"),
        ),
        Task("style", "speech", "style", ("read audiobook", "acted", "command", "conversation")),
        Task("language", "speech", "language", tuple(SENTENCES)),
        Task("speaking_speed", "speech", "speed", ("slow", "medium", "fast")),
        Task("pitch", "speech", "pitch", ("low", "medium", "high")),
        Task("digit", "speech", "digit", DIGITS),
        Task("word", "speech", "word", DIGITS + COMMANDS),
        Task("transcript", "speech", "transcript", None),
        Task("sound_class", "sound", "sound", tuple(SOUND_GROUPS)),
        Task("sound_group", "sound", "group", tuple(dict.fromkeys(SOUND_GROUPS.values()))),
        Task("instrument", "music", "instrument", ("flute", "organ", "guitar", "clarinet", "violin", "marimba")),
        Task("tempo", "music", "tempo", ("slow", "medium", "fast")),
        Task("melody", "music", "melody", ("rising", "falling", "repeated")),
        Task("domain", "any", "type", ("speech", "sound", "music")),
    ]
    return {task.name: task for task in tasks}


TASKS: dict[str, Task] = _tasks()


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
