"""An LLM behind any OpenAI-compatible server, such as ``vllm serve``: many requests in flight over one session.

Prompts are rendered here and sent to ``/completions``, so that the chat template is ours and a thought can be
continued. ``api="chat"`` is the fallback for servers that offer ``/chat/completions`` only. It uses the server's
template and accepts no prefix. `http_client.HttpClient` does retries, keys and errors.
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath
from typing import Any

from nemo_desta.config import nearest
from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.core.thinking import ThinkFormat, Thought, join, think_format
from nemo_desta.errors import ConfigError, RowError
from nemo_desta.recipes.engines.base import EngineError, Generation, Request
from nemo_desta.recipes.engines.http_client import Connection, HttpClient, NotServed, RequestFailed
from nemo_desta.recipes.engines.replies import MalformedAnswer, Reply, read_chat, read_completion
from nemo_desta.sources import resolve_source

logger = logging.getLogger(__name__)

APIS = ("completions", "chat")


class OpenAIEngine:
    """See the module.

    Args:
        model: the name by which the server knows the LLM.
        tokenizer: hub id, folder or ``package:<path>`` of its tokenizer; ``model`` if None. Over chat it is optional.
            Without it, a thought that the server splits off is written back with its opening tag, which is wrong for a
            template that opens the thought itself.
        api: one of `APIS`.
        chat_template_kwargs: must be those of the training that will read the answers.
        extra_body: fields added to every request; a null removes one of our fields, for servers that refuse it.
        base_url, connection: fields of `Connection` (``concurrency``, ``timeout_secs``, ``max_retries``, ...).

    The attribute ``concurrency`` is twice the connection's: while some rows are between two requests or wait for a
    retry, other rows keep the connections busy. ``revision`` is the ``root`` of the server's model, known after
    `connect` or the first answer. ``stats`` adds ``answers`` and ``errors`` to those of `HttpClient`. Raises
    `ConfigError` for an unknown ``api``, or a ``base_url`` that is no URL or carries a password.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        tokenizer: str | None = None,
        api: str = "completions",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        **connection: Any,
    ) -> None:
        if api not in APIS:
            raise ConfigError(f"unknown api {api!r} of the openai engine.{nearest(api, APIS)}")
        self.client = HttpClient(Connection(base_url, **connection))
        self.name = model
        self.revision: str | None = None
        self.new_tokens = 0
        self.concurrency = 2 * self.client.connection.concurrency
        self.stats = self.client.stats
        self.stats.update(answers=0, errors=0)
        self.api = api
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.extra_body = dict(extra_body or {})
        builder = None
        if api == "completions" or tokenizer:
            builder = _prompt_builder(tokenizer or model, self.chat_template_kwargs)
        self.prompts = builder if api == "completions" else None
        self._end_of_turn = builder.tokenizer.decode([builder.end_of_turn_id]) if builder else ""
        self._think = (think_format(builder) if builder else None) or ThinkFormat()
        self._served: dict[str | None, str | None] | None = None  # the server's models and their roots
        self._meeting: asyncio.Lock

    async def generate(self, request: Request) -> Generation:
        """See `Engine`. Raises `EngineError` if the server is down or refuses the key or model, or for a ``prefix``
        over chat."""
        await self._meet()
        path, parse = "/completions", self._parse_completion
        if self.api == "chat":
            path, parse = "/chat/completions", self._parse_chat
        try:
            reply, truncated = await self.client.post(path, json.dumps(self._body(request)).encode(), parse)
        except (RowError, RequestFailed) as error:
            self.stats["errors"] += 1
            return Generation("", False, str(error))
        except NotServed as error:
            if error.status != 404 or not self._served:
                raise
            served = ", ".join(map(str, self._served))
            raise EngineError(f"{error}; it serves: {served}; asked for: {self.name}") from None
        self.stats["answers"] += 1
        self.new_tokens += reply.new_tokens or 0
        return Generation(reply.text or "", truncated, None, reply.prompt_tokens or 0, reply.new_tokens or 0)

    async def close(self) -> None:
        """Close all connections; the next request opens new ones."""
        await self.client.close()

    def connect(self) -> None:
        """Reach the server now, so that ``revision`` is known; for code that is not async. Errors as in `generate`."""

        async def reach() -> None:
            try:
                await self._meet()
            finally:
                await self.close()

        with ThreadPoolExecutor(1) as thread:  # the caller's own thread may run an event loop
            thread.submit(lambda: asyncio.run(reach())).result()

    async def _meet(self) -> None:
        """Ask once which models there are, even if many requests start together."""
        if self.client.open():
            self._meeting = asyncio.Lock()  # of this event loop
        async with self._meeting:
            if self._served is not None:
                return
            # Not `created`: in most servers it is the time of the request, and equal rows would differ.
            served = {entry.get("id"): entry.get("root") for entry in await self.client.models()}
            if served and self.name not in served:
                logger.warning("%s serves %s, not %r", self.client.base_url, ", ".join(map(str, served)), self.name)
            if root := served.get(self.name):
                # A folder's path differs from machine to machine; its last part names the LLM.
                self.revision = PurePath(root).name if root.startswith(("/", ".", "~")) else root
            self._served = served

    def _body(self, request: Request) -> dict[str, Any]:
        sampling = request.sampling
        body: dict[str, Any] = {"model": self.name, "max_tokens": sampling.max_new_tokens, "seed": request.seed}
        if sampling.temperature is not None:
            body |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
        if self.prompts is None:
            # Only fields of OpenAI's own API, and settings that were given.
            if request.prefix:
                raise EngineError("no budget forcing over chat: a prefix needs api=completions")
            body["messages"] = [{"role": m["role"], "content": m["content"]} for m in request.messages]
            if self.chat_template_kwargs:
                body["chat_template_kwargs"] = self.chat_template_kwargs
            if sampling.temperature is not None and sampling.top_k is not None:
                body["top_k"] = sampling.top_k
        else:
            body |= {
                "prompt": self.prompts.text_prompt(request.messages, request.prefix),
                # The template has written its special tokens. The answer's must be returned (a closing think tag).
                "add_special_tokens": False,
                "skip_special_tokens": False,
                "spaces_between_special_tokens": False,
                "stop_token_ids": [self.prompts.end_of_turn_id],
            }
            if sampling.temperature is not None:
                # vLLM takes missing settings from the LLM's generation config, so all are given.
                body |= {"top_k": sampling.top_k or -1, "min_p": 0.0, "repetition_penalty": 1.0}
        if self.extra_body:
            body = {key: value for key, value in (body | self.extra_body).items() if value is not None}
        return body

    def _parse_completion(self, data: Mapping[str, Any]) -> tuple[Reply, bool]:
        return self._ended(read_completion(data))

    def _parse_chat(self, data: Mapping[str, Any]) -> tuple[Reply, bool]:
        reply = read_chat(data)
        content = reply.text or ""
        if reply.thought:
            ended = bool(content) or reply.finish_reason != "length"
            thought = ("" if self._think.opened_by_template else "\n") + reply.thought.strip("\n")
            answer = "\n\n" + content.lstrip("\n")
            parts = Thought(f"{thought}\n", answer, True) if ended else Thought(thought, None, False)
            content = join(parts, self._think)
        elif reply.text is None and reply.finish_reason != "length":
            raise MalformedAnswer("a message without content")
        return self._ended(reply._replace(text=content))

    def _ended(self, reply: Reply) -> tuple[Reply, bool]:
        """The reply without its end-of-turn token, and whether the token limit cut it."""
        text, reason = reply.text or "", reply.finish_reason
        if reason == "length":
            # A cut inside a character of several bytes leaves a replacement mark that the LLM did not generate.
            return reply._replace(text=text.rstrip("\ufffd")), True
        if reason == "content_filter":
            raise RequestFailed("the server's content filter blocked the answer")
        if reason != "stop":  # null or abort: the server gave the request up
            raise MalformedAnswer(f"finish_reason is {reason!r}")
        return reply._replace(text=text.removesuffix(self._end_of_turn)), False


def _prompt_builder(tokenizer: str, chat_template_kwargs: Mapping[str, Any]) -> PromptBuilder:
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(resolve_source(tokenizer), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise EngineError(
            f"no tokenizer {tokenizer!r}, which prompts are rendered with ({str(error).splitlines()[0]}): give a "
            "folder or hub id as tokenizer, or api=chat"
        ) from error
    return PromptBuilder(loaded, chat_template_kwargs=chat_template_kwargs)
