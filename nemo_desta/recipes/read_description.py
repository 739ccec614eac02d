"""Parses the attributes out of a seed description, in both dialects of `nemo_desta.recipes.describe`."""

import re
from functools import lru_cache
from typing import NamedTuple

_PAIR = re.compile(r"([^\W\d][\w '/-]{0,39}): ?(\S.*)", re.DOTALL)
_SPEAKER = re.compile(r"(?:the )?(?:\w+) speaker (?=\w)")
_SECONDS = re.compile(r"(\d+(?:\.\d+)?) ?s(?:econds?)?")
_HEAD = re.compile(r"\[\d+:\d\d-\d+:\d\d(?:, ([^\]]*))?\]")


class Facts(NamedTuple):
    """``attributes``: (name, value) pairs, names in lower case, each pair once. ``duration``: seconds or None."""

    attributes: tuple[tuple[str, str], ...]
    duration: float | None


@lru_cache(maxsize=4096)  # neighbouring rows share a clip
def read_description(description: str) -> Facts:
    """The attributes and the duration of ``[00:00-00:02] words (Key: value, ..., Duration: 2s)``.

    A part without a key continues the value before it ("Accent: English, American"); before the first key it is a
    caption and is skipped. A speaker's attribute has the attribute's name. In a conversation the duration is that of
    the last line, which describes the whole clip.
    """
    pairs: dict[tuple[str, str], None] = {}
    duration = None
    for line in description.split("\n"):
        head = _HEAD.match(line)
        for group in (head.group(1) if head else None, _last_brackets(line)):
            for name, value in _pairs(group) if group else ():
                if name == "duration":
                    seconds = _SECONDS.fullmatch(value)
                    duration = float(seconds.group(1)) if seconds else duration
                elif name != "speaker":
                    pairs[name, value] = None
    return Facts(tuple(pairs), duration)


def _pairs(group: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for part in group.split(", "):
        pair = _PAIR.fullmatch(part)
        if pair:
            name = _SPEAKER.sub("", pair.group(1).strip().lower(), count=1)
            found.append((name, pair.group(2).strip()))
        elif found:
            found[-1] = (found[-1][0], f"{found[-1][1]}, {part}")
    return found


def _last_brackets(line: str) -> str | None:
    """The text inside the round brackets at the end of the line."""
    line = line.rstrip()
    if not line.endswith(")"):
        return None
    depth = 0
    for position in range(len(line) - 1, -1, -1):
        depth += (line[position] == ")") - (line[position] == "(")
        if depth == 0:
            return line[position + 1 : -1]
    return None
