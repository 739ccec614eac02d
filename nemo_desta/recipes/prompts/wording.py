"""Detects prompts that refer to a text about the clip instead of its sound, by the patterns of ``wording.yaml``."""

import re
from pathlib import Path

import yaml

_WORDS = yaml.safe_load(Path(__file__).with_name("wording.yaml").read_text(encoding="utf-8"))
_PATTERNS = [
    (what, re.compile(re.sub(r"<(\w+)>", lambda name: _WORDS["lists"][name[1]], pattern), flags=re.IGNORECASE))
    for what, pattern in _WORDS["patterns"]
]


def leak(prompt: str) -> str | None:
    """How the prompt refers to a text about the clip, with the matching words; None if it does not.

    The check is strict: a false alarm costs one proposal, but a missed leak teaches the LLM to speak of texts.
    """
    matches = ((what, pattern.search(prompt)) for what, pattern in _PATTERNS)
    return next((f"{what}: {found.group()!r}" for what, found in matches if found), None)
