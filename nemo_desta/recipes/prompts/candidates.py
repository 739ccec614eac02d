"""Parses the prompts in an LLM's answer: numbered, bulleted, JSON or plain lines, with or without tags."""

import json
import re

_NUMBER = re.compile(r"^\s*(?:\*\*)?(?:prompt\s+|q)?\(?\d{1,3}\s*[.):]\)?(?:\*\*)?\s+(?=\S)", flags=re.IGNORECASE)
_BULLET = re.compile(r"^\s*[-*\u2022]\s+(?=\S)")
_QUOTES = {'"': '"', "\u201c": "\u201d", "'": "'", "`": "`"}


def parse_candidates(text: str, *, tag: str = "prompts", truncated: bool = False) -> list[str]:
    """The prompts in ``text``, in order, duplicates included.

    Only the part after the last ``<tag>`` up to its closing tag is read, or the whole text without tags. Lines below a
    numbered or bulleted line belong to it (the options of a question), up to a blank line; text before the first one
    is introduction. ``truncated``: the answer was cut by its token limit, so an unfinished last entry is dropped.
    """
    inside = re.split(rf"<{tag}>", text, flags=re.IGNORECASE)[-1]
    inside, *rest = re.split(rf"</{tag}>", inside, maxsplit=1, flags=re.IGNORECASE)
    lines = inside.splitlines()
    # Brackets within a numbered entry are part of that prompt.
    listed = None if any(_NUMBER.match(line) for line in lines) else _json_list(inside)
    entries = _entries(lines) if listed is None else listed
    if truncated and not rest and listed is None:
        entries = entries[:-1]
    return [found for entry in entries if re.search(r"[^\W\d_]", found := _clean(entry))]


def _json_list(text: str) -> list[str] | None:
    """The strings of a JSON list, also of objects with a text under "prompt" or "question"; None if there is none."""
    start, end = text.find("["), text.rfind("]")
    if not 0 <= start < end:
        return None
    try:
        values = json.loads(text[start : end + 1])
    except (ValueError, RecursionError):
        return None
    texts = [value.get("prompt") or value.get("question") if isinstance(value, dict) else value for value in values]
    return [text for text in texts if isinstance(text, str)] or None


def _entries(lines: list[str]) -> list[str]:
    marker = next((mark for mark in (_NUMBER, _BULLET) if any(mark.match(line) for line in lines)), None)
    if marker is None:
        plain = (line.strip() for line in lines)
        return [line for line in plain if line and not line.endswith(":") and not line.startswith("```")]
    entries: list[str] = []
    is_open = False
    for line in lines:
        if found := marker.match(line):
            entries.append(line[found.end() :])
            is_open = True
        elif is_open := is_open and bool(line.strip()):
            entries[-1] += f"\n{line.strip()}"
    return entries


def _clean(entry: str) -> str:
    """Without bold markup or quotation marks around the whole entry, and with single blanks."""
    entry = "\n".join(" ".join(line.split()) for line in entry.strip().splitlines())
    if entry.startswith("**") and entry.endswith("**") and len(entry) > 4:
        entry = entry[2:-2].strip()
    if len(entry) > 1 and _QUOTES.get(entry[0]) == entry[-1] and entry[-1] not in entry[1:-1]:
        entry = entry[1:-1].strip()
    return entry
