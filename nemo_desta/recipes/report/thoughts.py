"""Splits a raw response into thought and answer without its LLM's chat template: rows hold only the text."""

from typing import NamedTuple

from nemo_desta.core.think_tags import KNOWN_TAGS

_OPENING = tuple(tags.open for tags in KNOWN_TAGS)


class Parts(NamedTuple):
    """``thought`` is None in a response without a closed think block."""

    thought: str | None
    answer: str


def split_thought(response: str) -> Parts:
    """What stands before the first closing think tag, and the answer behind it; of any tags that are known.

    The opening tag may belong to the generation prompt, so a response without it still begins inside its thought.
    """
    for tags in KNOWN_TAGS:
        if tags.close in response:
            before, _, after = response.partition(tags.close)
            return Parts(before.strip().removeprefix(tags.open).strip(), after.strip())
    return Parts(None, response.strip())


def starts_thought(response: str) -> bool:
    """Whether the response itself opens a think block."""
    return response.lstrip().startswith(_OPENING)
