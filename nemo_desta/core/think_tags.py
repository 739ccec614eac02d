"""The tags around the thoughts of reasoning LLMs."""

from dataclasses import dataclass


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


def without_thought(text: str, tags: ThinkTags = ThinkTags()) -> str:
    """The text after the last closing tag; without one, the text before an opening tag (a thought that never ends)."""
    _, closed, rest = text.rpartition(tags.close)
    return rest if closed else text.partition(tags.open)[0]
