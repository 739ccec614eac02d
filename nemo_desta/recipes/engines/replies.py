"""Reads and checks the JSON answers of OpenAI-compatible servers.

A server may send anything. A faulty answer raises `MalformedAnswer` for this one request. A faulty token count becomes
None and the answer is kept.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

#: Larger token counts are faulty.
MAX_TOKENS = 1 << 40
#: Half a surrogate pair is JSON, but no text.
_SURROGATE = re.compile("[\ud800-\udfff]")


class MalformedAnswer(Exception):
    """A faulty answer; the request is retried."""


class Reply(NamedTuple):
    """``text``: None if the server sends null. ``thought``: if the server splits it off. Tokens: None if unknown."""

    text: str | None
    thought: str | None
    finish_reason: str | None
    prompt_tokens: int | None
    new_tokens: int | None


def read_object(content: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises `MalformedAnswer`."""
    start = repr(content[:80].decode(errors="replace"))
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number of 5,000 digits; nested too deep
        raise MalformedAnswer(f"{type(error).__name__} in {start}") from None
    if not isinstance(data, dict):
        raise MalformedAnswer(f"a {type(data).__name__} instead of an object: {start}")
    return data


def read_completion(data: Mapping[str, Any]) -> Reply:
    """The first choice of ``/completions``. Raises `MalformedAnswer`."""
    choice = _first_choice(data)
    text = _text(choice, "text")
    if text is None:
        raise MalformedAnswer("text is None")
    return Reply(text, None, _text(choice, "finish_reason"), *_tokens(data))


def read_chat(data: Mapping[str, Any]) -> Reply:
    """The first choice of ``/chat/completions``. Raises `MalformedAnswer`."""
    choice = _first_choice(data)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise MalformedAnswer(f"choices[0].message is {message!r:.80}")
    thoughts = [_text(message, name) for name in ("reasoning_content", "reasoning")]
    content = _text(message, "content")
    return Reply(content, thoughts[0] or thoughts[1], _text(choice, "finish_reason"), *_tokens(data))


def read_models(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of ``/models``: ``id`` and ``root``, if they are texts. Raises `MalformedAnswer`."""
    entries = data.get("data")
    if not isinstance(entries, list):
        raise MalformedAnswer(f"data is {entries!r:.80}")
    return [
        {key: entry[key] for key in ("id", "root") if _is_text(entry.get(key))}
        for entry in entries
        if isinstance(entry, dict)
    ]


def _first_choice(data: Mapping[str, Any]) -> dict[str, Any]:
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise MalformedAnswer(f"choices is {choices!r:.80}")
    return choices[0]


def _text(data: Mapping[str, Any], name: str) -> str | None:
    value = data.get(name)
    if value is None or _is_text(value):
        return value
    raise MalformedAnswer(
        f"{name} holds half a surrogate pair" if isinstance(value, str) else f"{name} is {value!r:.80}"
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not _SURROGATE.search(value)


def _tokens(data: Mapping[str, Any]) -> tuple[int | None, int | None]:
    usage = data.get("usage")
    if not isinstance(usage, dict):
        return None, None
    return _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))


def _count(value: Any) -> int | None:
    is_whole = type(value) is int or isinstance(value, float) and value.is_integer()  # True is no count
    return int(value) if is_whole and 0 <= value <= MAX_TOKENS else None
