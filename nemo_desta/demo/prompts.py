"""Questions about the demo's clips and their true answers: wordings and answer formats.

Each wording of a question has one sentence as its answer, so that a language model trained on these pairs has one
answer per prompt. Held-out wordings never occur in the language model's training.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_desta.demo.world import TASKS, gold

#: task -> (question, sentence of the answer). The last pair of each task is held out of the training.
WORDINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "gender": (
        ("What is the gender of the speaker?", "The speaker is {}."),
        ("Who is speaking?", "A {} speaker is talking."),
        ("Is the speaker male or female?", "The speaker is {}."),
        ("Is this the voice of a man or of a woman?", "The voice is {}."),
        ("Name the gender of the voice.", "The voice is {}."),
        ("Tell me the gender of the speaker.", "The speaker is {}."),
    ),
    "emotion": (
        ("What is the emotion of the speaker?", "The speaker sounds {}."),
        ("How does the speaker feel?", "The speaker feels {}."),
        ("Which emotion does the voice carry?", "The emotion is {}."),
        ("Name the emotion of the voice.", "The emotion is {}."),
        ("Tell me the emotion of the speaker.", "The speaker sounds {}."),
    ),
    "intensity": (
        ("What is the intensity of the emotion?", "The intensity is {}."),
        ("How strong is the emotion?", "The intensity of the emotion is {}."),
        ("Tell me the intensity of the emotion.", "The intensity is {}."),
    ),
    "accent": (
        ("What is the accent of the speaker?", "The accent is {}."),
        ("Which accent does the speaker have?", "The speaker has this accent: {}."),
        ("Name the accent of the voice.", "The accent is {}."),
        ("Tell me the accent of the speaker.", "The accent is {}."),
    ),
    "style": (
        ("What is the style of the speech?", "The style is {}."),
        ("Which style of speech is this?", "The style of the speech is {}."),
        ("Tell me the style of the speech.", "The style is {}."),
    ),
    "language": (
        ("What is the language of the speaker?", "The language is {}."),
        ("Which language is spoken?", "The speaker uses {}."),
        ("Name the language of the speech.", "The language is {}."),
        ("Tell me the language of the speaker.", "The language is {}."),
    ),
    "speaking_speed": (
        ("What is the speaking speed?", "The speaking speed is {}."),
        ("How fast does the speaker talk?", "The speaker talks at a {} speed."),
        ("Tell me the speaking speed.", "The speaking speed is {}."),
    ),
    "pitch": (
        ("What is the pitch of the voice?", "The pitch is {}."),
        ("How high is the voice?", "The pitch of the voice is {}."),
        ("Tell me the pitch of the voice.", "The pitch is {}."),
    ),
    "digit": (
        ("Which digit is spoken?", "The digit is {}."),
        ("What number do you hear?", "The number is {}."),
        ("What digit does the speaker say?", "The speaker says the digit {}."),
        ("Name the digit.", "The digit is {}."),
        ("Which number is spoken?", "The number is {}."),
        ("Tell me the digit.", "The digit is {}."),
    ),
    "word": (
        ("Which word is spoken?", "The word is {}."),
        ("What word do you hear?", "The spoken word is {}."),
        ("Name the word.", "The word is {}."),
        ("Tell me the word.", "The word is {}."),
    ),
    "transcript": (
        ("What does the speaker say?", "The speaker says: {}."),
        ("Repeat the words.", "{}."),
        ("Write down what you hear.", "{}."),
        ("What is said?", "The speaker says: {}."),
        ("Tell me what the speaker says.", "The speaker says: {}."),
    ),
    "sound_class": (
        ("What is the sound?", "The sound is {}."),
        ("What do you hear?", "I hear {}."),
        ("Which sound is this?", "This is the sound of {}."),
        ("Name the sound.", "The sound is {}."),
        ("Tell me the sound.", "The sound is {}."),
    ),
    "sound_group": (
        ("Which group does the sound belong to?", "The group is {}."),
        ("What is the group of the sound?", "The sound belongs to this group: {}."),
        ("Tell me the group of the sound.", "The group is {}."),
    ),
    "instrument": (
        ("Which instrument is playing?", "The instrument is the {}."),
        ("What instrument do you hear?", "I hear a melody on the {}."),
        ("Name the instrument.", "The instrument is the {}."),
        ("Tell me the instrument.", "The instrument is the {}."),
    ),
    "tempo": (
        ("What is the tempo of the music?", "The tempo is {}."),
        ("How fast is the music?", "The music is played at a {} tempo."),
        ("Tell me the tempo.", "The tempo is {}."),
    ),
    "melody": (
        ("What is the shape of the melody?", "The melody is {}."),
        ("How does the melody move?", "The notes of the melody are {}."),
        ("Tell me the shape of the melody.", "The melody is {}."),
    ),
    "domain": (
        ("What type of audio is this?", "The audio is {}."),
        ("Is this speech, a sound or music?", "This clip is {}."),
        ("Tell me the type of the audio.", "The audio is {}."),
    ),
}

#: task -> yes/no questions; the answer is "Yes, ..." or "No, ..." with the first wording's sentence.
YES_NO: dict[str, tuple[str, ...]] = {
    "gender": ("Is the speaker {}?", "Is the voice {}?"),
    "emotion": ("Is the speaker {}?", "Does the speaker sound {}?"),
    "accent": ("Is the accent {}?",),
    "language": ("Is the language {}?", "Does the speaker use {}?"),
    "speaking_speed": ("Is the speaking speed {}?",),
    "pitch": ("Is the pitch {}?",),
    "digit": ("Is the digit {}?", "Is the number {}?", "Does the speaker say {}?"),
    "word": ("Is the word {}?", "Does the speaker say {}?"),
    "sound_class": ("Is the sound {}?", "Is this the sound of {}?", "Do you hear {}?"),
    "instrument": ("Is the instrument the {}?", "Do you hear the {}?"),
    "tempo": ("Is the tempo {}?",),
    "domain": ("Is the audio {}?",),
}

DESCRIBE = ("Describe the audio.", "What can you hear?", "What is going on in the clip?", "Tell me about the audio.")

#: format -> wordings of its instruction; the last one is held out. "plain" has no instruction.
FORMATS: dict[str, tuple[str, ...]] = {
    "plain": ("",),
    "short": ("Answer in one word.", "Reply with the answer only.", "Use no more words than needed.", "Be brief."),
    "caps": ("Answer in capital letters.", "Use capital letters only.", "Write in capitals.", "Reply in capitals."),
    "json": ("Answer in JSON.", "Reply as a JSON object.", "Use the JSON format.", "Give me JSON."),
    "prefix": (
        'Begin your answer with "Answer:".',
        'Start with "Answer:".',
        'Your reply must begin with "Answer:".',
        'Start your reply with "Answer:".',
    ),
    "end": (
        'End your answer with "Done."',
        'Finish with "Done."',
        'Your reply must end with "Done."',
        'End your reply with "Done."',
    ),
    "think": ("Think first.", "Think before you answer.", "Think step by step.", "First think, then answer."),
    "chatty": ("Be chatty.", "Answer in a chatty way.", "Chat with me like a friend.", "Reply in a chatty way."),
}

#: Formats for transcripts and for free descriptions; every other question allows all formats.
TRANSCRIPT_FORMATS = ("plain", "short", "json", "prefix", "end", "chatty")
DESCRIBE_FORMATS = ("plain", "prefix", "end", "chatty")


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
        sentence = f"{verdict.capitalize()}, {_lower_first(prompt.sentence.format(value))}"
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
    if format == "prefix":
        return f"Answer: {sentence}"
    if format == "end":
        return f"{sentence} Done."
    if format == "think":
        return f"<think>\n{thought}\n</think>\n\n{sentence}"
    if format == "chatty":
        return f"Sure thing, my friend! {sentence} Hope that helps you!"
    return sentence


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


def _lower_first(text: str) -> str:
    return text if text.startswith("I ") else text[:1].lower() + text[1:]


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
