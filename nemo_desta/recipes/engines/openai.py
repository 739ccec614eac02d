"""An LLM behind any OpenAI-compatible server, such as ``vllm serve``: many requests in flight over one session.

Prompts are rendered here and sent to ``/completions``, so that chat templates stay ours and a thought can be gone on
with. ``api="chat"`` is the fallback for servers that offer ``/chat/completions`` only: their template, and no prefix.
Second tries, keys and errors are `client.Client`'s.
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
from nemo_desta.core.thinking import ThinkFormat, think_format
from nemo_desta.errors import ConfigError, RowError
from nemo_desta.recipes.engines.base import EngineError, Generation, Request
from nemo_desta.recipes.engines.client import Client, NotServed, Unanswered
from nemo_desta.recipes.engines.replies import MalformedAnswer, Reply, read_chat, read_completion
from nemo_desta.sources import resolve_source

logger = logging.getLogger(__name__)

APIS = ("completions", "chat")


class OpenAIEngine:
    """See the module.

    Args:
        base_url: where ``/completions`` is, usually ending in ``/v1`` (added to a URL without path).
        model: the name by which the server knows the LLM.
        tokenizer: hub id, folder or ``package:<path>`` of its tokenizer; ``model`` if None. Over chat it may be left
            out, and then a thought that the server splits off is written back with its opening tag, which is wrong
            for a template that opens the thought itself.
        api: one of `APIS`.
        concurrency: requests in flight. The attribute ``concurrency`` is twice that: while rows are between two
            requests, or wait before they try again, others have theirs ready and no connection is idle.
        timeout_secs: for one try.
        max_retries: tries after the first.
        api_key_env: the environment variable that holds the key; no key is sent when it is unset.
        chat_template_kwargs: must be those of the training that will read the answers.
        extra_body: fields added to every request; a null takes a field of ours out, for servers that refuse it.
        first_wait_secs, longest_wait_secs: bounds of the random waits between tries; they double from the first.

    ``revision`` is what the server calls the ``root`` of its model, known after `connect` or the first answer.
    ``stats`` counts ``requests`` (tries included), ``answers``, ``errors`` and ``retries`` by cause.

    Raises:
        ConfigError: unknown ``api``, or a URL that is none or carries a password.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        tokenizer: str | None = None,
        api: str = "completions",
        concurrency: int = 64,
        timeout_secs: float = 300.0,
        max_retries: int = 8,
        api_key_env: str = "OPENAI_API_KEY",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        first_wait_secs: float = 0.25,
        longest_wait_secs: float = 60.0,
    ) -> None:
        if api not in APIS:
            raise ConfigError(f"unknown api {api!r} of the openai engine.{nearest(api, APIS)}")
        self.client = Client(
            base_url,
            in_flight=concurrency,
            timeout_secs=timeout_secs,
            max_retries=max_retries,
            api_key_env=api_key_env,
            first_wait_secs=first_wait_secs,
            longest_wait_secs=longest_wait_secs,
        )
        self.name = model
        self.revision: str | None = None
        self.concurrency = 2 * concurrency
        self.stats = self.client.stats
        self.stats.update(answers=0, errors=0)
        self.api = api
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.extra_body = dict(extra_body or {})
        builder = None
        if api == "completions" or tokenizer:
            builder = _prompt_builder(tokenizer or model, self.chat_template_kwargs)
        self.prompts = builder if api == "completions" else None
        self._end_of_turn_id = builder.end_of_turn_id if builder else None
        self._end_of_turn = builder.tokenizer.decode([builder.end_of_turn_id]) if builder else ""
        format = think_format(builder) if builder else None
        self._think = format or ThinkFormat()
        self._first_contact: asyncio.Task[None] | None = None
        self._known = False

    async def generate(self, request: Request) -> Generation:
        """See `Engine`. Raises `EngineError` for a server that is down, a key or model that it refuses, or a
        ``prefix`` over chat."""
        self.client.open()
        if not self._known:
            await self._meet()
        try:
            if self.api == "chat":
                path, body, parse = "/chat/completions", self._chat_body(request), self._parse_chat
            else:
                path, body, parse = "/completions", self._completion_body(request), self._parse_completion
            reply, truncated = await self.client.post(path, json.dumps(body).encode(), parse)
        except (RowError, Unanswered) as error:
            self.stats["errors"] += 1
            return Generation("", False, str(error))
        except NotServed as error:
            raise await self._what_is_served(error) from None
        self.stats["answers"] += 1
        return Generation(reply.text or "", truncated, None, reply.prompt_tokens or 0, reply.new_tokens or 0)

    async def close(self) -> None:
        """Close all connections; the next request opens new ones."""
        task, self._first_contact = self._first_contact, None
        if task is not None and task.get_loop() is asyncio.get_running_loop():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self.client.close()

    def connect(self) -> None:
        """Reach the server now, so that ``revision`` is known, from code that is not asynchronous. Raises
        `EngineError` as `generate` does."""

        async def reach() -> None:
            self.client.open()
            try:
                await self._meet()
            finally:
                await self.close()

        with ThreadPoolExecutor(1) as thread:  # a thread of its own: the caller's may run an event loop
            thread.submit(lambda: asyncio.run(reach())).result()

    async def _meet(self) -> None:
        """Ask once which models there are, however many requests come first."""
        loop = asyncio.get_running_loop()
        if self._first_contact is None or self._first_contact.get_loop() is not loop:
            self._first_contact = loop.create_task(self._look_around())
        # Shielded: a caller that is cancelled must not take the answer from the others.
        await asyncio.shield(self._first_contact)

    async def _look_around(self) -> None:
        try:
            entries = await self.client.models()
        except NotServed:  # a server need not list its models
            entries = []
        names = [entry.get("id") for entry in entries]
        if entries and self.name not in names:
            logger.warning("%s serves %s, not %r", self.client.base_url, ", ".join(map(str, names)), self.name)
        for entry in entries:
            # `created` is the time of asking in most servers and would make equal rows differ.
            if entry.get("id") == self.name and isinstance(root := entry.get("root"), str):
                # A folder's place differs from machine to machine; its last part says what it is.
                self.revision = PurePath(root).name if root.startswith(("/", ".", "~")) else root
        self._known = True

    async def _what_is_served(self, error: NotServed) -> EngineError:
        names = []
        if error.status == 404:
            try:
                names = [str(entry.get("id")) for entry in await self.client.models()]
            except EngineError:
                pass
        served = f"; it serves: {', '.join(names)}; asked for: {self.name}" if names else ""
        return EngineError(f"{error}{served}")

    def _completion_body(self, request: Request) -> dict[str, Any]:
        assert self.prompts is not None
        sampling = request.sampling
        body = {
            "model": self.name,
            "prompt": self.prompts.text_prompt(request.messages, request.prefix),
            "max_tokens": sampling.max_new_tokens,
            "seed": request.seed,
            # The template has written its special tokens, and the answer's must be seen (a closing think tag).
            "add_special_tokens": False,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
            "stop_token_ids": [self._end_of_turn_id],
        }
        if sampling.temperature is not None:
            # vLLM fills what is left out from the LLM's generation config: all of it is said.
            body |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k or -1}
            body |= {"min_p": 0.0, "repetition_penalty": 1.0}
        return self._with_extra(body)

    def _chat_body(self, request: Request) -> dict[str, Any]:
        if request.prefix:
            raise EngineError("no budget forcing over chat: a prefix needs api=completions")
        sampling = request.sampling
        body = {
            "model": self.name,
            "messages": [{"role": m["role"], "content": m["content"]} for m in request.messages],
            "max_tokens": sampling.max_new_tokens,
            "seed": request.seed,
        }
        # Only what is in OpenAI's own API, and what was asked for.
        if self.chat_template_kwargs:
            body["chat_template_kwargs"] = self.chat_template_kwargs
        if sampling.temperature is not None:
            body |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
            if sampling.top_k is not None:
                body["top_k"] = sampling.top_k
        return self._with_extra(body)

    def _with_extra(self, body: dict[str, Any]) -> dict[str, Any]:
        if not self.extra_body:
            return body
        return {key: value for key, value in (body | self.extra_body).items() if value is not None}

    def _parse_completion(self, data: Mapping[str, Any]) -> tuple[Reply, bool]:
        reply = read_completion(data)
        if reply.text is None:
            raise MalformedAnswer("text is None")
        return self._ended(reply)

    def _parse_chat(self, data: Mapping[str, Any]) -> tuple[Reply, bool]:
        reply = read_chat(data)
        content = reply.text or ""
        if reply.thought:
            opening = "" if self._think.opened_by_template else f"{self._think.tags.open}\n"
            ended = bool(content) or reply.finish_reason != "length"
            closing = f"\n{self._think.tags.close}\n\n" if ended else ""
            content = opening + reply.thought.strip("\n") + closing + content.lstrip("\n")
        elif reply.text is None and reply.finish_reason != "length":
            raise MalformedAnswer("a message without content")
        return self._ended(reply._replace(text=content))

    def _ended(self, reply: Reply) -> tuple[Reply, bool]:
        """The reply without its end-of-turn token, and whether the token limit cut it."""
        text, reason = reply.text or "", reply.finish_reason
        if reason == "length":
            # A cut inside a character of several bytes leaves a replacement mark that the LLM did not write.
            return reply._replace(text=text.rstrip("\ufffd")), True
        if reason == "content_filter":
            raise Unanswered("the server's content filter kept the answer back")
        if reason != "stop":  # null or abort: the server gave up on it
            raise MalformedAnswer(f"finish_reason is {reason!r}")
        return reply._replace(text=text.removesuffix(self._end_of_turn) if self._end_of_turn else text), False


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
