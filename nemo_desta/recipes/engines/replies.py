"""Reads and checks the JSON answers of OpenAI-compatible servers.

A server may send anything. A faulty answer raises `MalformedAnswer` for this one request. A faulty token count becomes
None and the answer is kept.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

#: Larger token counts are faulty.
MAX_TOKENS = 1 << 40


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
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number of 5,000 digits; nested too deep
        raise MalformedAnswer(f"{type(error).__name__} in {_start(content)}") from None
    if not isinstance(data, dict):
        raise MalformedAnswer(f"a {type(data).__name__} instead of an object: {_start(content)}")
    return data


def read_completion(data: Mapping[str, Any]) -> Reply:
    """The first choice of ``/completions``. Raises `MalformedAnswer`."""
    choice = _first_choice(data)
    return Reply(_text(choice.get("text"), "text"), None, _finish_reason(choice), *_tokens(data))


def read_chat(data: Mapping[str, Any]) -> Reply:
    """The first choice of ``/chat/completions``. Raises `MalformedAnswer`."""
    choice = _first_choice(data)
    message = choice.get("message")
    if not isinstance(message, Mapping):
        raise MalformedAnswer(f"choices[0].message is {message!r:.80}")
    thoughts = [_text(message.get(name), name) for name in ("reasoning_content", "reasoning")]
    content = _text(message.get("content"), "content")
    return Reply(content, thoughts[0] or thoughts[1], _finish_reason(choice), *_tokens(data))


def read_models(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of ``/models``: ``id`` and ``root``, if they are texts. Raises `MalformedAnswer`."""
    entries = data.get("data")
    if not isinstance(entries, list):
        raise MalformedAnswer(f"data is {entries!r:.80}")
    return [
        {key: entry[key] for key in ("id", "root") if _is_text(entry.get(key))}
        for entry in entries
        if isinstance(entry, Mapping)
    ]


def _first_choice(data: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise MalformedAnswer(f"choices is {choices!r:.80}")
    return choices[0]


def _text(value: Any, what: str) -> str | None:
    if value is None or _is_text(value):
        return value
    raise MalformedAnswer(
        f"{what} holds half a surrogate pair" if isinstance(value, str) else f"{what} is {value!r:.80}"
    )


def _finish_reason(choice: Mapping[str, Any]) -> str | None:
    return _text(choice.get("finish_reason"), "finish_reason")


def _tokens(data: Mapping[str, Any]) -> tuple[int | None, int | None]:
    usage = data.get("usage")
    if not isinstance(usage, Mapping):
        return None, None
    return _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))


def _count(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return value if is_number and 0 <= value <= MAX_TOKENS else None


def _is_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half a surrogate pair is JSON, but no text
        return False
    return True


def _start(content: bytes) -> str:
    return repr(content[:80].decode(errors="replace"))
