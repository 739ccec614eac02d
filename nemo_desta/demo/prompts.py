"""Questions about the demo's clips and their true answers: wordings and answer formats.

Each wording of a question has one sentence as its answer, so that a language model trained on these pairs has one
answer per prompt. The texts are in ``assets/questions.yaml``.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_desta.demo.world import TASKS, gold, load_texts

_TEXTS = load_texts("questions.yaml")
#: task -> (question, sentence of the answer). The last pair of each task is held out of the training.
WORDINGS: dict[str, tuple[tuple[str, str], ...]] = _TEXTS["wordings"]
#: task -> yes/no questions; the answer is "Yes, ..." or "No, ..." with the first wording's sentence.
YES_NO: dict[str, tuple[str, ...]] = _TEXTS["yes_no"]
DESCRIBE: tuple[str, ...] = _TEXTS["describe"]
#: format -> wordings of its instruction; the last one is held out. "plain" has no instruction.
FORMATS: dict[str, tuple[str, ...]] = _TEXTS["formats"]

#: Formats for transcripts and for free descriptions; every other question allows all formats.
TRANSCRIPT_FORMATS = ("plain", "short", "json", "prefix", "end", "chatty")
DESCRIBE_FORMATS = ("plain", "prefix", "end", "chatty")
_FRAMES = {
    "prefix": "Answer: {sentence}",
    "end": "{sentence} Done.",
    "think": "<think>\n{thought}\n</think>\n\n{sentence}",
    "chatty": "Sure thing, my friend! {sentence} Hope that helps you!",
}


@dataclass(frozen=True)
class Prompt:
    """One instruction about a clip. ``kind``: value, yes_no, choice or describe; ``asked``: the offered value."""

    task: str
    kind: str
    text: str
    sentence: str
    format: str = "plain"
    asked: str | None = None


def make_prompt(
    task: str,
    kind: str = "value",
    format: str = "plain",
    *,
    truth: str | None = None,
    wording: int | None = 0,
    format_wording: int | None = 0,
    rng: random.Random | None = None,
) -> Prompt:
    """A prompt by its parts. ``wording=None``: a random training wording; -1: the held-out one; the same for formats.

    ``truth`` (needed for yes/no and choice): the true value; yes/no asks for it half of the time, choice offers it.
    """
    rng = rng or random.Random(0)
    asked = None
    sentence = WORDINGS[task][0][1] if task in WORDINGS else ""
    if kind == "value":
        question, sentence = _pick(WORDINGS[task], wording, rng)
    elif kind == "yes_no":
        others = [value for value in TASKS[task].values if value != truth]
        asked = truth if truth in TASKS[task].values and rng.random() < 0.5 else rng.choice(others)
        question = rng.choice(YES_NO[task]).format(asked)
    elif kind == "choice":
        others = [value for value in TASKS[task].values if value != truth]
        options = [truth, *rng.sample(others, min(len(others), rng.choice((1, 2, 3))))]
        rng.shuffle(options)
        question = f"Choose the {TASKS[task].key}: {', '.join(options[:-1])} or {options[-1]}."
    elif kind == "describe":
        question = _pick(DESCRIBE, wording, rng)
    else:
        raise ValueError(f"kind of prompt {kind!r} is not known; choose value, yes_no, choice or describe")
    instruction = FORMATS[format][0] if format == "plain" else _pick(FORMATS[format], format_wording, rng)
    return Prompt(task, kind, f"{question} {instruction}".strip(), sentence, format, asked)


def true_answer(row: Mapping[str, Any], prompt: Prompt) -> str:
    """The true answer to ``prompt``, from the row's attributes."""
    if prompt.kind == "describe":
        return apply_format(prompt.format, _description_sentence(row), {})
    key, value = TASKS[prompt.task].key, gold(row, prompt.task)
    if value is None:
        sentence, value, answer = f"The {key} is not known.", "unknown", {key: "unknown"}
    elif prompt.kind == "yes_no":
        verdict = "yes" if value == prompt.asked else "no"
        sentence = prompt.sentence.format(value)
        if not sentence.startswith("I "):
            sentence = sentence[:1].lower() + sentence[1:]
        sentence = f"{verdict.capitalize()}, {sentence}"
        answer = {"answer": verdict}
    else:
        sentence, answer = prompt.sentence.format(value), {key: value}
    thought = f"The question is about the {key}. The {key} is {value}."
    return apply_format(prompt.format, sentence, answer, thought)


def apply_format(format: str, sentence: str, answer: Mapping[str, str], thought: str = "") -> str:
    """One answer in a format. ``answer``: its name and value; ``thought``: the text of the think block."""
    if format == "short":
        return next(iter(answer.values()))
    if format == "caps":
        return sentence.upper()
    if format == "json":
        return json.dumps(answer, ensure_ascii=False)
    return _FRAMES.get(format, "{sentence}").format(sentence=sentence, thought=thought)


def follows_format(format: str, answer: str) -> bool:
    """Whether an answer obeys the format; its content does not matter."""
    text = answer.strip()
    if format == "think":
        return text.startswith("<think>") and "</think>" in text
    text = text.rsplit("</think>", 1)[-1].strip()
    if format == "short":
        return 0 < len(text.split()) <= 3 and text[-1] not in ".}"
    if format == "caps":
        return text.isupper()
    if format == "json":
        try:
            return isinstance(json.loads(text), dict)
        except ValueError:
            return False
    if format == "prefix":
        return text.startswith("Answer:")
    if format == "end":
        return text.endswith("Done.")
    if format == "chatty":
        return text.startswith("Sure thing")
    return text.endswith(".") and not text.startswith("Answer:")


def formats_of(task: str, kind: str) -> tuple[str, ...]:
    """The formats in which a question can be answered."""
    if kind == "describe":
        return DESCRIBE_FORMATS
    return TRANSCRIPT_FORMATS if task == "transcript" else tuple(FORMATS)


def _pick(wordings: Sequence[Any], index: int | None, rng: random.Random) -> Any:
    return rng.choice(wordings[:-1]) if index is None else wordings[index]


def _description_sentence(row: Mapping[str, Any]) -> str:
    """Free description in one or two sentences, always in the same order."""
    if row["domain"] == "sound":
        group = gold(row, "sound_group")
        what = f"The clip holds the sound of {gold(row, 'sound_class') or 'something'}"
        return f"{what}, from the group {group}." if group else f"{what}."
    if row["domain"] == "music":
        tempo = gold(row, "tempo")
        return f"A melody is played on the {gold(row, 'instrument') or 'instrument'}" + (
            f" at a {tempo} tempo." if tempo else "."
        )
    gender, emotion, text = gold(row, "gender"), gold(row, "emotion"), gold(row, "transcript")
    who = f"A {gender} speaker" if gender else "A speaker"
    first = f"{who} says: {text}." if text else f"{who} is talking."
    return f"{first} The emotion is {emotion}." if emotion else first
