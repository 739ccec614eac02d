"""Training text for the reasoning variant: thoughts about a description, and their rewriting from "read" to "heard".

The thoughts of a reasoning LLM reveal that it read a text ("the description says ..."). In self-rephrasing (ALARM) the
same LLM rewrites them as if it had heard the audio; these generated pairs teach it to the small model.
"""

import random
from collections.abc import Mapping
from typing import Any

from nemo_desta.demo.prompts import Prompt
from nemo_desta.demo.world import TASKS, gold, load_texts

_TEXTS = load_texts("training_text.yaml")
IN_TAGS = "Put the result between <answer> and </answer>."
REWRITER_THOUGHT = "I keep the text and change only the words about reading."


def thoughts(row: Mapping[str, Any], prompt: Prompt, rng: random.Random) -> tuple[str, str]:
    """The thought before the answer to ``prompt``: a reader's and a listener's version."""
    key, value = TASKS[prompt.task].key, gold(row, prompt.task)
    if prompt.kind == "describe":
        return _TEXTS["overview"]
    first = _TEXTS["unknown"] if value is None else rng.choice(_TEXTS["thoughts"])
    last = ("", "") if value is None else rng.choice(_TEXTS["closings"])
    reader, listener = (a.format(key=key, value=value) + b.format(key=key) for a, b in zip(first, last, strict=True))
    return reader, listener


def rephrase_messages(reader: str, listener: str, answer: str, rng: random.Random) -> list[dict[str, str]]:
    """A request to rewrite a reasoned answer, and the response: the model's own thought, then the rewritten text."""
    tag, tagged = rng.choice(_TEXTS["neutral_tags"]), rng.random() < 0.5
    before, after = (f"<{tag}>\n{thought}\n</{tag}>\n\n{answer}" for thought in (reader, listener))
    request = f"{rng.choice(_TEXTS['rephrase'])} {IN_TAGS if tagged else ''}".strip()
    if tagged:
        after = f"<answer>\n{after}\n</answer>"
    return [
        {"role": "user", "content": f"{request}\n\n{before}"},
        {"role": "assistant", "content": f"{REWRITER_THOUGHT}\n</think>\n\n{after}"},
    ]
