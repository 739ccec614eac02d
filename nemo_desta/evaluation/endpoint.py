"""Evaluates a model behind an OpenAI-compatible server: clips are sent as ``input_audio``, and answers are written to
the same file format as a local model's.
"""

import asyncio
import base64
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemo_desta.answering.answer_file import AnswerFile
from nemo_desta.evaluation.settings import EndpointSettings
from nemo_desta.progress import Progress
from nemo_desta.recipes.engines.http_client import Connection, HttpClient, RequestFailed
from nemo_desta.recipes.engines.replies import read_chat
from nemo_desta.recipes.run_async import run_async

#: File extension -> the request's ``format``.
FORMATS = {".wav": "wav", ".mp3": "mp3", ".flac": "flac", ".ogg": "ogg"}


def answer_rows_at(
    endpoint: EndpointSettings,
    rows: str | Path,
    output: str | Path,
    *,
    tag: str,
    sampling: Mapping[str, Any],
    progress: bool = True,
) -> dict[str, int]:
    """Answers the rows of a JSONL file that have no answer in ``output`` yet; returns counts.

    Args:
        rows: ``{"id", "messages"}`` each, with paths of audio files. tag: marks the position of an audio in a message.
        sampling: fields of a chat completion (``temperature``, ``max_tokens``, ...), sent unchanged.

    Raises:
        EngineError: the server cannot be reached or rejects the key. ConfigError: ``output`` holds answers made with
            other settings.
    """
    asked = [json.loads(line) for line in Path(rows).read_bytes().splitlines()]  # bytes: str splits at U+2028
    file = AnswerFile(output, {"model": endpoint.model, "base_url": endpoint.base_url, **sampling})
    settings = asdict(endpoint)
    model = settings.pop("model")
    client = HttpClient(Connection(**settings))
    todo = [row for row in asked if row["id"] not in file.done]

    async def ask_all() -> None:
        client.open()
        free = asyncio.Semaphore(endpoint.concurrency)
        with Progress("rows", len(asked), shown=progress) as bar:
            bar.skip(len(asked) - len(todo))

            async def one(row: Mapping[str, Any]) -> None:
                async with free:
                    messages = await asyncio.to_thread(_as_parts, row["messages"], tag)
                    body = json.dumps({"model": model, "messages": messages, **sampling}).encode()
                    try:
                        answer = await client.post("/chat/completions", body, _parse)
                    except RequestFailed as error:
                        file.reject(row["id"], str(rows), "unanswered", str(error))
                    else:
                        file.answer(row["id"], answer)
                bar.update()

            try:
                async with bar.ticking():
                    await asyncio.gather(*(one(row) for row in todo))
            finally:
                await client.close()

    try:
        run_async(ask_all())
    finally:
        file.close()
    failed = sum(row["id"] not in file.done for row in todo)
    return {"answered": len(todo) - failed, "before": len(asked) - len(todo), "failed": failed}


def _as_parts(messages: list[Mapping[str, Any]], tag: str) -> list[dict[str, Any]]:
    """Messages with the clip's bytes in place of each locator tag. Servers put each part on its own line."""
    result = []
    for message in messages:
        audios = iter(message.get("audios") or ())
        first, *rest = message["content"].split(tag) if message.get("audios") else [message["content"]]
        parts = [{"type": "text", "text": first.strip()}]
        for text in rest:
            path = Path(next(audios)["audio"])
            data = base64.b64encode(path.read_bytes()).decode()
            clip = {"data": data, "format": FORMATS.get(path.suffix.lower(), "wav")}
            parts += [{"type": "input_audio", "input_audio": clip}, {"type": "text", "text": text.strip()}]
        parts = [part for part in parts if part["type"] != "text" or part["text"]]
        plain = len(parts) == 1 and parts[0]["type"] == "text"
        result.append({"role": message["role"], "content": parts[0]["text"] if plain else parts})
    return result


def _parse(data: Mapping[str, Any]) -> dict[str, Any]:
    reply = read_chat(data)
    return {
        "answer": reply.text or "",
        "thinking": reply.thought,
        "finish": reply.finish_reason,
        "num_prompt_tokens": reply.prompt_tokens,
        "num_new_tokens": reply.new_tokens,
    }
