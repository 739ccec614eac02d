"""A judge: any engine of the recipes (an OpenAI-compatible server, a local LLM), at temperature 0 unless a benchmark's
rules say otherwise.

Every reply is cached by the hash of its request. A report can therefore be made again, or a killed run resumed,
without new requests. The judge's name, the number of requests and the cost go into the report.
"""

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_desta.data.jsonl_log import append_shared, read_shared
from nemo_desta.evaluation.scores import JudgeAsk
from nemo_desta.progress import Progress
from nemo_desta.recipes.engines import Engine, Request, SamplingConfig
from nemo_desta.recipes.run_async import run_async


class Judge:
    """Sends requests to the judge, caches the replies and counts tokens.

    Args:
        engine: runs the LLM. cache: a JSONL file of replies, created if missing.
        prices: per million prompt and new tokens, for the cost in the report.
    """

    def __init__(self, engine: Engine, cache: str | Path, *, prices: Sequence[float] | None = None) -> None:
        self.engine = engine
        self.cache = Path(cache)
        self.prices = prices
        self.usage = {"asked": 0, "from_cache": 0, "failed": 0, "prompt_tokens": 0, "new_tokens": 0}
        self._known: dict[str, str] = {}
        for record in read_shared(self.cache):
            key, text = record.get("key"), record.get("text")
            if isinstance(key, str) and isinstance(text, str):
                self._known[key] = text

    def ask(self, requests: Sequence[JudgeAsk], *, progress: bool = True) -> list[str | None]:
        """The judge's replies in order; None for a failed request."""
        keys = [self._key(request) for request in requests]
        todo = {key: request for key, request in zip(keys, requests, strict=True) if key not in self._known}
        self.usage["from_cache"] += len(requests) - len(todo)
        if todo:
            run_async(self._ask_all(todo, progress))
        return [self._known.get(key) for key in keys]

    def about(self) -> dict[str, Any]:
        """The judge's entry in the report."""
        found: dict[str, Any] = {"model": self.engine.name, "revision": self.engine.revision, **self.usage}
        if self.prices:
            spent = self.usage["prompt_tokens"] * self.prices[0] + self.usage["new_tokens"] * self.prices[1]
            found["cost"] = round(spent / 1e6, 4)
        return found

    def _key(self, request: JudgeAsk) -> str:
        asked = {"model": self.engine.name, **request._asdict(), "messages": [dict(m) for m in request.messages]}
        del asked["index"]  # equal requests about two items share one cache entry
        return hashlib.sha256(json.dumps(asked, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    async def _ask_all(self, todo: Mapping[str, JudgeAsk], progress: bool) -> None:
        def tokens() -> int:
            return self.usage["new_tokens"]

        free = asyncio.Semaphore(self.engine.concurrency)
        self.cache.parent.mkdir(parents=True, exist_ok=True)

        async def one(key: str, request: JudgeAsk) -> None:
            async with free:
                sampling = SamplingConfig(request.max_new_tokens, request.temperature, request.top_p)
                seed = int(key[:8], 16)
                answer = await self.engine.generate(Request(request.messages, sampling, seed=seed))
            self.usage["asked"] += 1
            bar.update()
            self.usage["prompt_tokens"] += answer.prompt_tokens
            self.usage["new_tokens"] += answer.new_tokens
            if answer.error is not None:
                self.usage["failed"] += 1
                return
            self._known[key] = answer.text
            append_shared(self.cache, {"key": key, "text": answer.text})

        try:
            with Progress("judge", len(todo), unit="answers", tokens=tokens, shown=progress) as bar:
                async with bar.ticking():
                    await asyncio.gather(*(one(key, request) for key, request in todo.items()))
        finally:
            await self.engine.close()
