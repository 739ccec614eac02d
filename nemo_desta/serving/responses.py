"""Answers in OpenAI's format: one object, or the chunks of a stream.

A thought is separate from the answer, as ``reasoning_content``, the name that clients of reasoning servers use.
"""

import json
import time
import uuid
from dataclasses import dataclass
from typing import Any

from nemo_desta.answering.engine import Delta


@dataclass
class Usage:
    """Tokens of one request. ``num_prompt_tokens`` includes the audio vectors."""

    num_prompt_tokens: int
    num_audio_tokens: int
    num_new_tokens: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_new_tokens,
            "total_tokens": self.num_prompt_tokens + self.num_new_tokens,
            "prompt_tokens_details": {"audio_tokens": self.num_audio_tokens, "cached_tokens": 0},
        }


class ChatResponse:
    """The answer of the model ``name`` to one request."""

    def __init__(self, name: str) -> None:
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.head = {"id": self.id, "created": int(time.time()), "model": name}

    def whole(self, deltas: list[Delta], usage: Usage) -> dict[str, Any]:
        """The answer as one object."""
        message: dict[str, Any] = {"role": "assistant", "content": _joined(deltas, thinking=False), "refusal": None}
        if thought := _joined(deltas, thinking=True):
            message["reasoning_content"] = thought
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": deltas[-1].finish}
        return {**self.head, "object": "chat.completion", "choices": [choice], "usage": usage.as_dict()}

    def opening(self, *, with_usage: bool) -> bytes:
        """The first chunk, which holds the role."""
        return self._chunk({"role": "assistant", "content": ""}, None, with_usage)

    def piece(self, delta: Delta, *, with_usage: bool) -> bytes:
        """The chunks of one piece: its text, and ``finish_reason`` if it is the last."""
        chunks = b""
        if delta.text:
            name = "reasoning_content" if delta.thinking else "content"
            chunks += self._chunk({name: delta.text}, None, with_usage)
        if delta.finish is not None:
            chunks += self._chunk({}, delta.finish, with_usage)
        return chunks

    def usage(self, usage: Usage) -> bytes:
        """The chunk after the last choice, for ``include_usage``."""
        return event({**self.head, "object": "chat.completion.chunk", "choices": [], "usage": usage.as_dict()})

    def _chunk(self, delta: dict[str, Any], finish: str | None, with_usage: bool) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        chunk = {**self.head, "object": "chat.completion.chunk", "choices": [choice]}
        return event(chunk | {"usage": None} if with_usage else chunk)


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def _joined(deltas: list[Delta], *, thinking: bool) -> str:
    return "".join(delta.text for delta in deltas if delta.thinking == thinking)
