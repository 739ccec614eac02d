"""Messages in the forms of several libraries -> ours: a text with a locator tag per audio, and the audios in order.

Contents may be lists of parts as in OpenAI, vLLM, transformers and Qwen2-Audio. Paths are the caller's own; `clips`
refuses URLs when it loads the audio.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from nemo_desta.config import check_keys, nearest
from nemo_desta.data.encoded import from_base64
from nemo_desta.errors import RowError

MESSAGE_KEYS = ("role", "content", "audios")
#: Keys that clients return with a reply; they never reach a prompt.
IGNORED_KEYS = ("name", "reasoning_content", "refusal")
PART_TYPES = ("text", "audio", "input_audio", "audio_url")


def plain_message(message: Any, tag: str, where: str) -> dict[str, Any]:
    """``{"role", "content": text, "audios": list}``; an audio is anything that `load_clip` accepts.

    Each part becomes a line, an audio part its ``tag``. ``{"type": "audio"}`` without data stands for the next of the
    message's ``audios``.

    Raises:
        RowError: a faulty message or part. ConfigError: an unknown key.
    """
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise RowError("schema", f"{where} must be {{'role': ..., 'content': ...}}, found {_described(message)}")
    check_keys([k for k, v in message.items() if v is not None and k not in IGNORED_KEYS], MESSAGE_KEYS, where)
    content, audios = message.get("content"), message.get("audios")
    if not isinstance(audios, list | tuple | None):
        raise RowError("schema", f"{where}: 'audios' must be a list of audios, found {_described(audios)}")
    audios = list(audios or ())
    if isinstance(content, list | tuple):
        content, audios = _joined(content, audios, tag, where)
    if not isinstance(content, str):
        raise RowError("schema", f"{where}: 'content' must be a text or a list of parts, found {_described(content)}")
    return {"role": message["role"], "content": content, "audios": audios}


def _joined(parts: Any, given: list[Any], tag: str, where: str) -> tuple[str, list[Any]]:
    """The text of some parts, and the audios in the order of their tags."""
    lines, audios, given = [], [], list(given)
    for number, part in enumerate(parts, 1):
        here = f"{where}, part {number}"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(kind, str):
            raise RowError("schema", f"{here}: must be {{'type': ...}}, found {_described(part)}")
        if kind not in PART_TYPES:
            raise RowError("schema", f"{here}: unknown type '{kind:.60}'.{nearest(kind, PART_TYPES)}")
        if kind == "text":
            check_keys(part, ("type", "text"), here)
            if not isinstance(part.get("text"), str):
                raise RowError("schema", f"{here}: 'text' must be a string, found {_described(part.get('text'))}")
            lines.append(part["text"])
            continue
        audio = _audio(part, kind, here)
        if audio is not None:
            audios.append(audio)
        elif given:
            audios.append(given.pop(0))
        lines.append(tag)
    if any(line is not tag and tag in line for line in lines) and any(line is tag for line in lines):
        raise RowError("tags", f"{where}: a text part holds the tag {tag}, and audios are parts; use one of the two")
    return "\n".join(lines), audios + given


def _audio(part: Mapping[str, Any], kind: str, where: str) -> dict[str, Any] | None:
    """An audio for `load_clip`; None for a part that only marks the position."""
    rest = {key: value for key, value in part.items() if key != "type" and value is not None}
    if kind == "input_audio":  # OpenAI's; the data itself tells its format
        check_keys(rest, ("input_audio",), where)
        inner = rest.get("input_audio")
        if not isinstance(inner, Mapping) or not isinstance(inner.get("data"), str):
            raise RowError("schema", f"{where}: must be {{'input_audio': {{'data': base64, 'format': ...}}}}")
        check_keys(inner, ("data", "format", "transcript"), where)
        return {"bytes": from_base64(inner["data"], where), "text": inner.get("transcript")}
    for alias in ("audio_url", "url"):
        if alias in rest and "audio" not in rest:  # `load_clip` refuses two sounds in one part
            url = rest.pop(alias)
            if isinstance(url, Mapping):
                check_keys(url, ("url",), f"{where}.{alias}")
                url = url.get("url")
            rest["audio"] = url
    if isinstance(rest.get("base64"), str):
        rest["bytes"] = from_base64(rest.pop("base64"), where)
    if kind == "audio_url" and rest.get("audio") is None:
        raise RowError("schema", f"{where}: must be {{'audio_url': {{'url': a path or a data URI}}}}")
    return rest or None


def _described(value: Any) -> str:
    """A value for an error text: arrays and bytes by type only."""
    if isinstance(value, np.ndarray | torch.Tensor):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"an object with the keys {sorted(map(str, value))!r:.100}"
    return f"{type(value).__name__} {value!r:.60}" if isinstance(value, str | int | float) else type(value).__name__
