"""Prompts for self-generation: a starter pool for real LLMs, prompt files, and the seeded draw for one clip.

A prompt says what a description must hold for it to be answerable (``requires``), so that the LLM is not asked for
what it cannot know: negative answers about clips that do hold the thing are what it would learn from that.
"""

import json
import os
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nemo_desta.recipes.describe import NOT_AUDIBLE, audible_names


@dataclass(frozen=True)
class Prompt:
    """One thing to ask. ``tasks``: what it is about, for the reader; ``domains``: where it fits, empty = anywhere.

    ``requires``: attribute names, all of which the description must hold; also ``transcript`` and ``caption``.
    """

    prompt_id: str
    prompt: str
    tasks: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()


def parse_prompts(entries: Sequence[Mapping[str, Any]], *, where: str = "prompts") -> list[Prompt]:
    """Prompts from plain mappings with the fields of `Prompt`; ``ValueError`` names the entry that is not one."""
    known = {field.name for field in fields(Prompt)}
    prompts: dict[str, Prompt] = {}
    for number, entry in enumerate(entries, start=1):
        at = f"{where}:{number}"
        if not isinstance(entry, Mapping):
            raise ValueError(f"{at}: expected one object per prompt, found a {type(entry).__name__}")
        if unknown := set(entry) - known:
            raise ValueError(f"{at}: unknown field {sorted(unknown)[0]!r}; a prompt has {', '.join(sorted(known))}")
        values = dict(entry)
        for name in ("prompt_id", "prompt"):
            if not isinstance(values.get(name), str) or not values[name].strip():
                raise ValueError(f"{at}: {name} must be text, found {values.get(name)!r}")
        for name in known - {"prompt_id", "prompt"}:
            items = values.get(name) or ()
            if isinstance(items, str) or not all(isinstance(item, str) for item in items):
                raise ValueError(f"{at}: {name} must be a list of names, found {items!r}")
            values[name] = tuple(items)
        if values["prompt_id"] in prompts:
            raise ValueError(f"{at}: prompt_id {values['prompt_id']!r} was seen before; each prompt has its own")
        prompts[values["prompt_id"]] = Prompt(**values)
    if not prompts:
        raise ValueError(f"{where}: no prompts")
    return list(prompts.values())


def load_prompts(path: str | os.PathLike[str]) -> list[Prompt]:
    """Prompts from a JSONL file, one per line, no blank lines between them."""
    entries = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON ({error.msg} at character {error.pos})") from None
    return parse_prompts(entries, where=str(path))


def answerable(
    prompts: Sequence[Prompt], row: Mapping[str, Any], exclude: Collection[str] = NOT_AUDIBLE
) -> list[Prompt]:
    """The prompts that fit the row's domain and ask only for what its description holds."""
    held = audible_names(row, exclude)
    return [p for p in prompts if held.issuperset(p.requires) and (not p.domains or row["domain"] in p.domains)]


def draw(
    prompts: Sequence[Prompt],
    row: Mapping[str, Any],
    count: int,
    *,
    seed: int,
    exclude: Collection[str] = NOT_AUDIBLE,
) -> list[Prompt]:
    """Up to ``count`` different answerable prompts, the same for a row whatever other rows there are.

    A larger ``count`` only adds to the prompts of a smaller one.
    """
    fitting = answerable(prompts, row, exclude)
    random.Random(f"{seed}:{row['id']}").shuffle(fitting)
    return fitting[:count]


def starter_prompts() -> list[Prompt]:
    """The starter pool: open descriptions, one attribute each, and the same under constraints of format."""
    pool = []
    for domain, requires, texts in _STARTER:
        for text in texts:
            domains = () if domain == "any" else (domain,)
            name = "-".join([domain, *requires]) if requires else f"{domain}-open"
            number = sum(p.prompt_id.rpartition("-")[0] == name for p in pool) + 1
            pool.append(Prompt(f"{name}-{number}", text, requires or ("describe",), requires, domains))
    return pool


#: (domain, what the description must hold, prompts)
_STARTER: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        "any",
        (),
        (
            "Describe the audio.",
            "What can you hear in this recording?",
            "Tell me everything you can make out in this clip.",
            "Sum up the recording in one sentence.",
            "Is this speech, a sound, or music? Explain how you can tell.",
            "Describe the recording to someone who cannot hear it.",
            "What might be going on where this was recorded? Separate what you hear from what you guess.",
            "List what you hear as short bullet points.",
            "Describe the clip in no more than ten words.",
            "Describe what you hear as a JSON object with keys of your own choice. Output the JSON only.",
            "WRITE A DESCRIPTION OF THE AUDIO USING CAPITAL LETTERS ONLY.",
            'Describe the recording, starting with the words "In this clip" and ending with the word "Done."',
        ),
    ),
    (
        "speech",
        (),
        (
            "Describe the person who is speaking and the way they speak.",
            "What do you notice about the voice?",
            "You are a casting director. Say in two or three sentences what you think of this voice.",
            "Write a short diary entry by someone who overheard this speech.",
        ),
    ),
    (
        "speech",
        ("transcript",),
        (
            "What does the speaker say?",
            "Write down the spoken words, and nothing else.",
            "Which words are spoken? Put them in quotation marks.",
            "How many words does the speaker say? Reason step by step.",
            "Say in your own words what the speaker means.",
            "Translate what is said into French.",
            "Answer the speaker as if you were part of the conversation.",
            "What could the speaker say next? Continue in the same tone.",
        ),
    ),
    (
        "speech",
        ("digit",),
        (
            "Which digit is spoken?",
            "Which digit do you hear? Reply with the numeral only.",
            "Add one to the number that is spoken. What do you get?",
            "Is the spoken number odd or even? Explain briefly.",
        ),
    ),
    (
        "speech",
        ("gender",),
        (
            "What is the speaker's gender?",
            "Is the voice that of a man or of a woman? Answer with one word.",
            'Report the speaker\'s gender as JSON, under the key "gender".',
        ),
    ),
    (
        "speech",
        ("emotion",),
        (
            "How does the speaker feel?",
            "Name the emotion in the voice with a single word, in lower case.",
            "Is the speaker in a good mood? Start with yes or no, then say why.",
            "Suggest how a friend should react to someone who sounds like this.",
        ),
    ),
    ("speech", ("intensity",), ("How strongly is the feeling expressed?",)),
    (
        "speech",
        ("accent",),
        ("Which accent does the speaker have?", "Where might the speaker have learnt to talk like this?"),
    ),
    (
        "speech",
        ("language",),
        ("Which language is being spoken?", "Name the spoken language with its two-letter ISO 639-1 code only."),
    ),
    (
        "speech",
        ("speaking_speed",),
        ("Does the speaker talk slowly, at a normal pace, or fast?", "Would a beginner be able to follow this pace?"),
    ),
    ("speech", ("pitch",), ("How high or low is the voice?",)),
    ("speech", ("style",), ("In what style is this spoken, and where would you expect to hear it?",)),
    (
        "speech",
        ("gender", "emotion"),
        ("Give the speaker's gender and emotion as two words separated by a comma.",),
    ),
    (
        "sound",
        ("sound_class",),
        (
            "Which sound is this?",
            "Name the source of the sound in as few words as you can.",
            "What makes this sound, and where would you expect to hear it?",
            "Should someone at home be worried by this sound? Start with yes or no.",
            'Return JSON with the keys "sound" and "place", where place is somewhere this sound is typical.',
            "Write two lines of a story in which this sound is heard.",
            "Imitate the sound in writing, then name it.",
        ),
    ),
    (
        "sound",
        ("sound_group",),
        ("What kind of thing makes this sound: an animal, a person, a machine, nature, or something else?",),
    ),
    (
        "music",
        (),
        ("Describe the music.", "What could this music be used for? Give one idea and your reason."),
    ),
    (
        "music",
        ("instrument",),
        (
            "Which instrument is playing?",
            "Name the instrument and the family it belongs to, separated by a colon.",
            "How does this instrument produce its sound?",
        ),
    ),
    ("music", ("genre",), ("What genre of music is this?",)),
    ("music", ("tempo",), ("Is the music slow, moderate, or fast?",)),
)
