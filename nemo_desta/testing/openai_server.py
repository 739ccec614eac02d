"""A real HTTP server that speaks OpenAI's API and answers by script, with delays and faults: for tests and benchmarks.

    with ScriptedServer(lambda prompt: "a dog barks", delay_secs=0.1, faults=Faults(http_500=0.05)) as server:
        engine = OpenAIEngine(server.url, server.model, tokenizer=...)

``answer`` gets the prompt (over chat: the contents of the messages, one per line) and returns a text or a `Reply`,
which may also be a refusal; to answer by more than the prompt, override `ScriptedServer.reply`. A text longer than
``max_tokens`` words is cut there with finish reason ``length``. Which calls meet a fault follows from ``seed``, the
prompt, the request's own seed and how often it was asked before, not from the order of arrival. ``server.calls`` are
the completions asked for so far, ``server.counts`` how each ended, ``server.in_flight`` and
``server.most_in_flight`` those under way now and at most.

    python -m nemo_desta.testing.openai_server --delay 0.1 --http-500 0.05 --dropped 0.02 --malformed 0.02

serves until it is ended (prints its URL on the first line); its answers are random words that follow from the prompt.
"""

import argparse
import asyncio
import json
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple

try:
    from aiohttp import web
except ImportError as error:
    raise ImportError("the scripted server needs aiohttp: pip install aiohttp") from error


@dataclass(frozen=True)
class Faults:
    """Shares of all calls: an answer 500, a connection cut without or within the answer, a 200 with broken JSON."""

    http_500: float = 0.0
    dropped: float = 0.0
    malformed: float = 0.0


@dataclass(frozen=True)
class Reply:
    """One scripted answer. ``finish_reason`` None: ``stop``, or ``length`` where ``max_tokens`` cut the text.
    ``reasoning``: the thought that a server splits off (chat only). ``message``: the error's text for other statuses.
    ``body``: sent as it is, in the place of all these.
    """

    text: str = ""
    finish_reason: str | None = None
    reasoning: str | None = None
    status: int = 200
    message: str = "scripted"
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_secs: float | None = None
    body: bytes | None = None


class Call(NamedTuple):
    """``attempt``: how often the same prompt and seed came before, from 0. ``chat``: whether it came over chat."""

    prompt: str
    body: dict[str, Any]
    headers: Mapping[str, str]
    attempt: int
    chat: bool


class ScriptedServer:
    """See the module. A context manager that serves from a thread of its own on 127.0.0.1.

    Args:
        answer: prompt to text or `Reply`; None for random words that follow from the prompt.
        model: the one model that it has; another name is refused with 404.
        api_key: what ``Authorization: Bearer`` must carry; None asks for nothing.
        keep_calls: False for long runs: `calls` stays empty.
    """

    def __init__(
        self,
        answer: Callable[[str], str | Reply] | None = None,
        *,
        model: str = "scripted",
        root: str | None = "scripted-root",
        delay_secs: float = 0.0,
        faults: Faults = Faults(),
        seed: int = 0,
        api_key: str | None = None,
        port: int = 0,
        keep_calls: bool = True,
    ) -> None:
        self.answer = answer or random_words
        self.model = model
        self.root = root
        self.delay_secs = delay_secs
        self.faults = faults
        self.seed = seed
        self.api_key = api_key
        self.port = port
        self.keep_calls = keep_calls
        self.calls: list[Call] = []
        self.counts: Counter[str] = Counter()
        self.most_in_flight = 0
        self.url = ""
        self.in_flight = 0
        self._attempts: Counter[tuple[str, Any]] = Counter()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event
        self._socket: socket.socket
        self._problem: OSError | None = None
        self._thread: threading.Thread | None = None

    def reply(self, call: Call) -> Reply:
        """The answer to one call; override to answer by more than its prompt."""
        answer = self.answer(call.prompt)
        return answer if isinstance(answer, Reply) else Reply(answer)

    def __enter__(self) -> "ScriptedServer":
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(ready)), daemon=True, name=f"scripted server {id(self):x}"
        )
        self._thread.start()
        if not ready.wait(30) or not self.url:
            raise RuntimeError(f"the scripted server did not start on port {self.port}") from self._problem
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        assert self._loop is not None and self._thread is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            runner = await self.start()
        except OSError as error:
            self._problem = error
            return
        finally:
            ready.set()
        await self._stop.wait()
        await self.stop(runner)

    async def start(self) -> web.AppRunner:
        """Serve from the running event loop, until `stop`."""
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/v1/chat/completions", self._completions)
        app.router.add_get("/v1/models", self._models)
        # Cancellation: a call whose client has gone is over.
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01, handler_cancellation=True)
        await runner.setup()
        self._socket = socket.create_server(("127.0.0.1", self.port))
        await web.SockSite(runner, self._socket).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        return runner

    async def stop(self, runner: web.AppRunner) -> None:
        """End what `start` began, with every connection closed.

        asyncio leaves a connection open that is being accepted while its server closes. So accepting ends first.
        """
        asyncio.get_running_loop().remove_reader(self._socket)
        for _ in range(3):  # rounds of the loop in which an accepted connection becomes known to the runner
            await asyncio.sleep(0)
        await runner.cleanup()
        await asyncio.sleep(0.01)  # connections close in the next rounds of the loop

    async def _models(self, request: web.Request) -> web.StreamResponse:
        if self._refused(request):
            return _error(401, "Incorrect API key provided")
        entry = {"id": self.model, "object": "model", "created": int(time.time()), "owned_by": "script"}
        return web.json_response({"object": "list", "data": [entry | ({"root": self.root} if self.root else {})]})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._answer(request)
        finally:
            self.in_flight -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        chat = request.path.endswith("/chat/completions")
        prompt = "\n".join(m["content"] for m in body["messages"]) if chat else body["prompt"]
        key = (prompt, body.get("seed"))
        call = Call(prompt, body, request.headers, self._attempts[key], chat)
        self._attempts[key] += 1
        if self.keep_calls:
            self.calls.append(call)
        if self._refused(request):
            return _error(401, f"Incorrect API key provided: {request.headers.get('Authorization')}")
        if body["model"] != self.model:
            return _error(404, f"The model {body['model']!r} does not exist.")
        reply = self.reply(call)
        delay = self.delay_secs if reply.delay_secs is None else reply.delay_secs
        if delay:
            await asyncio.sleep(delay)
        luck = random.Random(f"{self.seed}/{key}/{call.attempt}")
        fault = self._fault(luck.random())
        self.counts[fault or f"status {reply.status}"] += 1
        if fault == "500":
            return _error(500, "injected")
        if reply.body is not None:
            return web.Response(body=reply.body, status=reply.status, content_type="application/json")
        if reply.status != 200:
            return _error(reply.status, reply.message, reply.headers)
        content = json.dumps(_completion(self.model, body, reply, chat)).encode()
        if fault == "dropped":
            return await _drop(request, content[: len(content) // 2] if luck.random() < 0.5 else b"")
        if fault == "malformed":
            content = content[: len(content) // 2] if luck.random() < 0.5 else b'{"choices": []}'
        return web.Response(body=content, content_type="application/json")

    def _fault(self, draw: float) -> str | None:
        for name, share in (
            ("500", self.faults.http_500),
            ("dropped", self.faults.dropped),
            ("malformed", self.faults.malformed),
        ):
            if draw < share:
                return name
            draw -= share
        return None

    def _refused(self, request: web.Request) -> bool:
        return self.api_key is not None and request.headers.get("Authorization") != f"Bearer {self.api_key}"


def random_words(prompt: str, count: int = 40) -> str:
    """A text of ``count`` words that follows from the prompt."""
    return " ".join(random.Random(prompt).choices(_WORDS, k=count)) + "."


_WORDS = [
    first + second for first in ("ba", "di", "ko", "lu", "me", "no", "ri", "so") for second in ("l", "nt", "ra", "ste")
]


def _completion(model: str, body: Mapping[str, Any], reply: Reply, chat: bool) -> dict[str, Any]:
    words = re.findall(r"\s*\S+\s*$|\s*\S+", reply.text)
    limit = body.get("max_tokens") or body.get("max_completion_tokens") or len(words)
    reason = reply.finish_reason or ("length" if len(words) > limit else "stop")
    text = "".join(words[:limit]) if len(words) > limit else reply.text
    choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
    if chat:
        choice["message"] = {"role": "assistant", "content": text or None}
        if reply.reasoning is not None:
            choice["message"]["reasoning_content"] = reply.reasoning
    else:
        choice["text"] = text
    prompt_tokens = len(json.dumps(body.get("messages") or body.get("prompt")).split())
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": min(len(words), limit)}
    return {"id": "scripted", "model": model, "choices": [choice], "usage": usage}


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.json_response({"error": {"message": message, "code": status}}, status=status, headers=headers)


async def _drop(request: web.Request, part: bytes) -> web.StreamResponse:
    """Cut the connection, after a part of the answer where there is one."""
    response = web.StreamResponse(headers={"Content-Length": "1000000", "Content-Type": "application/json"})
    if part:
        await response.prepare(request)
        await response.write(part)
    if request.transport is not None:
        request.transport.close()
    return response


def main() -> None:
    parser = argparse.ArgumentParser(description="An OpenAI-compatible server that answers random words.")
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--model", default="scripted")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--words", type=int, default=40, help="length of an answer")
    parser.add_argument("--seed", type=int, default=0)
    for name, what in (("http-500", "answers 500"), ("dropped", "cut connections"), ("malformed", "broken JSON")):
        parser.add_argument(f"--{name}", type=float, default=0.0, help=f"share of {what}")
    args = parser.parse_args()
    server = ScriptedServer(
        lambda prompt: random_words(prompt, args.words),
        model=args.model,
        delay_secs=args.delay,
        faults=Faults(args.http_500, args.dropped, args.malformed),
        seed=args.seed,
        port=args.port,
        keep_calls=False,
    )
    asyncio.run(_serve_forever(server))


async def _serve_forever(server: ScriptedServer) -> None:
    runner = await server.start()
    print(server.url, flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await server.stop(runner)


if __name__ == "__main__":
    main()
