"""One row as a reader meets it: its clip to play, what the LLM read, what it was asked and wrote, and who wrote it."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from nemo_desta.recipes.report.samples import Sound
from nemo_desta.recipes.report.tally import prompt_of
from nemo_desta.recipes.report.thoughts import split_thought

_SHOWN = {"id", "dataset", "seed_description", "prompt", "messages", "response", "first_response"}
_MAX_TEXT = 6000


def row_card(row: Mapping[str, Any], sounds: Sequence[Sound], *, split: str) -> str:
    """A kept row."""
    tags = [row.get("dataset"), split, row.get("stage"), row.get("prompt_kind")]
    labels = "".join(f'<span class="tag">{escape(str(tag))}</span>' for tag in tags if tag)
    if row.get("truncated"):
        labels += '<span class="tag warn">truncated</span>'
    return (
        f'<article class="row"><header><b>{escape(row["id"])}</b>{labels}</header>'
        f"{''.join(map(_sound, sounds))}{_texts(row)}{_provenance(row)}</article>"
    )


def rejected_card(record: Mapping[str, Any]) -> str:
    """A rejected record, with its row where there is one."""
    row = record.get("row")
    body = ""
    if (
        isinstance(row, Mapping)
        and isinstance(row.get("response"), str)
        and (row.get("prompt") or row.get("messages"))
    ):
        body = _texts(row)
    detail = escape(_cut(str(record.get("detail") or "")))
    return (
        f'<article class="row"><header><b>{escape(str(record.get("id")))}</b>'
        f'<span class="tag warn">{escape(str(record.get("reason")))}</span></header>'
        f'<p class="examples">{detail}</p>{body}</article>'
    )


def _texts(row: Mapping[str, Any]) -> str:
    parts = []
    if description := row.get("seed_description"):
        parts.append(_text("What the LLM read in place of the sound", "description", str(description)))
    for message in row.get("messages") or ():
        if isinstance(message, Mapping) and message.get("role") == "system":
            parts.append(_text("System", "description", str(message.get("content"))))
    parts.append(_text("Prompt", "prompt", str(row.get("prompt") or prompt_of(row))))
    thought, answer = split_thought(row["response"])
    if thought is not None:
        parts.append(_folded(f"thought, {len(thought.split()):,} words", thought))
    parts.append(_text("Response", "response", answer or "(nothing behind the thought)"))
    if isinstance(first := row.get("first_response"), str):
        parts.append(_folded("the first answer, before it was rewritten", first))
    return "".join(parts)


def _text(label: str, kind: str, text: str) -> str:
    return f'<p class="label">{label}</p><div class="text {kind}" dir="auto">{escape(_cut(text))}</div>'


def _folded(label: str, text: str) -> str:
    inside = f'<div class="text" dir="auto">{escape(_cut(text))}</div>'
    return f'<details class="thought"><summary>{label}</summary>{inside}</details>'


def _sound(sound: Sound) -> str:
    name = f"<code>{escape(sound.name)}</code>"
    if sound.uri is None:
        return (
            f'<div class="sound">{name}<span class="problem">not playable: {escape(sound.problem or "")}</span></div>'
        )
    player = f'<audio controls preload="metadata" src="{sound.uri}"></audio>'
    return f'<div class="sound">{player}<span>{escape(sound.note)}</span>{name}</div>'


def _provenance(row: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in row.items() if name not in _SHOWN}
    if not rest:
        return ""
    shown = escape(_cut(json.dumps(rest, ensure_ascii=False, indent=1)))
    return f'<details class="provenance"><summary>provenance</summary><pre>{shown}</pre></details>'


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}… ({len(text) - _MAX_TEXT:,} more characters)"
