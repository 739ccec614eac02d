"""The tags around the thoughts of reasoning LLMs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class ThinkTags:
    """The two tags around a thought."""

    open: str = "<think>"
    close: str = "</think>"

    def __post_init__(self) -> None:
        if not self.open.strip() or not self.close.strip() or self.open == self.close:
            raise ValueError(f"think tags must be two different texts, found {self.open!r} and {self.close!r}")


#: Tags that `think_format` looks for by default.
KNOWN_TAGS = (
    ThinkTags(),
    ThinkTags("<thinking>", "</thinking>"),
    ThinkTags("<thought>", "</thought>"),
    ThinkTags("[THINK]", "[/THINK]"),
    ThinkTags("<seed:think>", "</seed:think>"),
)
CLOSING_TAGS = tuple(tags.close for tags in KNOWN_TAGS)


class Parts(NamedTuple):
    """``thought`` is None in a response without a closing think tag."""

    thought: str | None
    answer: str


def split_thought(response: str, closing_tags: Sequence[str] = CLOSING_TAGS) -> Parts:
    """Split a raw response at its last closing think tag, without its LLM's chat template; white space is stripped.

    The opening tag may belong to the generation prompt, so the thought begins with or without it.
    """
    end, close = max((response.rfind(tag), tag) for tag in closing_tags)
    if end < 0:
        return Parts(None, response.strip())
    thought = response[:end].strip()
    for tags in KNOWN_TAGS:
        if tags.close == close:
            thought = thought.removeprefix(tags.open).strip()
    return Parts(thought, response[end + len(close) :].strip())


def starts_thought(response: str) -> bool:
    """Whether the response itself opens a think block."""
    return response.lstrip().startswith(tuple(tags.open for tags in KNOWN_TAGS))


def without_thought(text: str, tags: ThinkTags = ThinkTags()) -> str:
    """The text after the last closing tag; without one, the text before an opening tag (a thought that never ends)."""
    _, closed, rest = text.rpartition(tags.close)
    return rest if closed else text.partition(tags.open)[0]


def between_tags(text: str, name: str = "answer") -> str:
    """The text after the last ``<name>``, up to ``</name>`` or the end, as in ALARM; all of a text without it."""
    return text.rpartition(f"<{name}>")[2].partition(f"</{name}>")[0].strip()
