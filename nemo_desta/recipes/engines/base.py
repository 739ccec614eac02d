"""What every engine is: something that turns chat messages into an LLM's raw answer, one request at a time.

Rows ask as coroutines; how many requests are under way together, and how they share batches, is the engine's affair.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from nemo_desta.core.prompting import PromptBuilder  # brings torch with it

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Sampling:
    """How to draw an answer. The defaults are DeSTA2.5-Audio's.

    ``temperature``: 0 takes the likeliest token, None leaves temperature, top-p and top-k to the LLM's own generation
    config, as reasoning LLMs want it.
    """

    max_new_tokens: int = 512
    temperature: float | None = 0.05
    top_p: float = 1.0
    top_k: int | None = None


@dataclass(frozen=True)
class Request:
    """One answer that is wanted.

    ``seed``: of this answer's random numbers; they depend on nothing else, however answers are batched. ``prefix``:
    raw text behind the generation prompt that the answer goes on from (a thought to be continued); not repeated in
    the answer.
    """

    messages: Messages
    sampling: Sampling
    seed: int
    prefix: str = ""


class Generation(NamedTuple):
    """``text``: the raw continuation of the generation prompt, special tokens such as a closing think tag kept, the
    end-of-turn token left out. ``truncated``: the token limit came before the end of the turn. ``error``: why there is
    no text, None when there is. Tokens are 0 where the engine does not count them.
    """

    text: str
    truncated: bool
    error: str | None = None
    prompt_tokens: int = 0
    new_tokens: int = 0


class Engine(Protocol):
    """An LLM to ask. ``name`` and ``revision`` go into the rows (``llm``, ``llm_revision``); ``concurrency``: how many
    requests it likes to have under way; ``prompts``: renders by the LLM's chat template, None where a server does.
    """

    name: str
    revision: str | None
    concurrency: int
    prompts: "PromptBuilder | None"

    async def generate(self, request: Request) -> Generation:
        """The answer. What is wrong with this one request comes back as ``error``; what is wrong with the engine
        itself (no such server, key refused) is raised as `EngineError`."""
        ...

    async def close(self) -> None:
        """Free connections and workers."""
        ...


class EngineError(RuntimeError):
    """The engine cannot work at all: the run stops, and what it has written stays."""


def generate_all(engine: Engine, requests: Iterable[Request]) -> list[Generation]:
    """The answers to all ``requests`` in their order, from code that is not asynchronous."""

    async def ask() -> list[Generation]:
        try:
            return list(await asyncio.gather(*(engine.generate(request) for request in requests)))
        finally:
            await engine.close()

    return asyncio.run(ask())
