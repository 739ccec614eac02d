"""Training text for the reasoning variant: thoughts about a description, and their rewriting from "read" to "heard".

The thoughts of a reasoning LLM reveal that it read a text ("the description says ..."). In self-rephrasing (ALARM) the
same LLM rewrites them as if it had heard the audio; these generated pairs teach it to the small model.
"""

import random
from collections.abc import Mapping
from typing import Any

from nemo_desta.demo.prompts import Prompt
from nemo_desta.demo.world import TASKS, gold

#: (a reader's thought, a listener's thought) about a known value; `UNKNOWN`: about one that the description lacks.
THOUGHTS = (
    ("The description says that the {key} is {value}.", "I can hear that the {key} is {value}."),
    ("According to the text, the {key} is {value}.", "Going by the sound, the {key} is {value}."),
    ("I read in the description that the {key} is {value}.", "I hear in the audio that the {key} is {value}."),
    ("The text mentions the {key}: it is {value}.", "The audio reveals the {key}: it is {value}."),
)
UNKNOWN = ("The description does not mention the {key}.", "The audio does not reveal the {key}.")
OVERVIEW = ("I read the description and sum it up.", "I listen to the audio and sum it up.")
CLOSINGS = (
    ("", ""),
    (" So the text answers the question.", " So the sound answers the question."),
    (
        " The question is about the {key}, so I answer with it.",
        " The question is about the {key}, so I answer with it.",
    ),
)

REPHRASE = (
    "Rewrite the text as if you had heard the audio.",
    "Rephrase the text: speak of hearing, not of reading.",
    "Change every word about reading into a word about hearing.",
)
IN_TAGS = "Put the result between <answer> and </answer>."
#: They replace think tags in a text to rewrite, so that the model does not confuse them with its own.
NEUTRAL_TAGS = ("reasoning", "thoughts", "thought_process")
REWRITER_THOUGHT = "I keep the text and change only the words about reading."


def thoughts(row: Mapping[str, Any], prompt: Prompt, rng: random.Random) -> tuple[str, str]:
    """The thought before the answer to ``prompt``: a reader's and a listener's version."""
    key, value = TASKS[prompt.task].key, gold(row, prompt.task)
    if prompt.kind == "describe":
        return OVERVIEW
    first = UNKNOWN if value is None else rng.choice(THOUGHTS)
    last = ("", "") if value is None else rng.choice(CLOSINGS)
    reader, listener = (a.format(key=key, value=value) + b.format(key=key) for a, b in zip(first, last, strict=True))
    return reader, listener


def rephrase_messages(reader: str, listener: str, answer: str, rng: random.Random) -> list[dict[str, str]]:
    """A request to rewrite a reasoned answer, and the response: the model's own thought, then the rewritten text."""
    tag, tagged = rng.choice(NEUTRAL_TAGS), rng.random() < 0.5
    before, after = (f"<{tag}>\n{thought}\n</{tag}>\n\n{answer}" for thought in (reader, listener))
    request = f"{rng.choice(REPHRASE)} {IN_TAGS if tagged else ''}".strip()
    if tagged:
        after = f"<answer>\n{after}\n</answer>"
    return [
        {"role": "user", "content": f"{request}\n\n{before}"},
        {"role": "assistant", "content": f"{REWRITER_THOUGHT}\n</think>\n\n{after}"},
    ]
