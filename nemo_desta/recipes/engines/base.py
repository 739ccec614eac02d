"""The interface of all engines: an engine turns chat messages into an LLM's raw answer, one request at a time.

Rows send requests as coroutines. The engine decides how many requests run together and how they share batches.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from nemo_desta.recipes.run_async import run_async

if TYPE_CHECKING:
    from nemo_desta.core.prompting import PromptBuilder  # brings torch with it

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class SamplingConfig:
    """The sampling settings of a recipe, as rows store them. The defaults are DeSTA2.5-Audio's. ``temperature``: 0
    takes the likeliest token; None takes temperature, top-p and top-k from the LLM's own generation config, as
    reasoning LLMs need it."""

    max_new_tokens: int = 512
    temperature: float | None = 0.05
    top_p: float = 1.0
    top_k: int | None = None


@dataclass(frozen=True)
class Request:
    """``seed``: of this answer's random numbers, which do not depend on the batch. ``prefix``: raw text after the
    generation prompt that the answer continues (a thought, for instance); the answer does not repeat it."""

    messages: Messages
    sampling: SamplingConfig
    seed: int
    prefix: str = ""


class Generation(NamedTuple):
    """``text``: the raw continuation of the generation prompt. It keeps special tokens such as a closing think tag,
    but not the end-of-turn token. ``truncated``: the token limit came before the end of the turn. ``error``: why there
    is no text, None if there is one. Token counts are 0 if the engine does not count tokens."""

    text: str
    truncated: bool
    error: str | None = None
    prompt_tokens: int = 0
    new_tokens: int = 0


class Engine(Protocol):
    """An LLM to query. ``name`` and ``revision`` are stored in the rows (``llm``, ``llm_revision``). ``concurrency``:
    how many requests should run together. ``prompts``: renders by the LLM's chat template, None if a server does.

    An engine may count its tokens in ``new_tokens``, those of answers in progress as well, for tokens per second.
    """

    name: str
    revision: str | None
    concurrency: int
    prompts: "PromptBuilder | None"

    async def generate(self, request: Request) -> Generation:
        """The answer. A fault of this one request is returned as ``error``. A fault of the engine itself (no such
        server, key refused) raises `EngineError`."""

    async def close(self) -> None:
        """Free connections and workers."""


def tokens_of(engines: Iterable[Engine]) -> int | None:
    """New tokens of all ``engines`` so far; None if one of them does not count them."""
    counts = [getattr(engine, "new_tokens", None) for engine in {id(engine): engine for engine in engines}.values()]
    return sum(counts) if counts and None not in counts else None


class EngineError(RuntimeError):
    """The engine cannot work at all. The run stops; rows that are written stay."""


def generate_all(engine: Engine, requests: Iterable[Request]) -> list[Generation]:
    """The answers to all ``requests`` in their order, for code that is not asynchronous."""

    async def ask() -> list[Generation]:
        try:
            return list(await asyncio.gather(*(engine.generate(request) for request in requests)))
        finally:
            await engine.close()

    return run_async(ask())
