"""The wire below the routes: bodies read within a limit, refusals that arrive, clients that hang up."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

try:
    from fastapi import Request
except ImportError as error:
    raise ImportError("the server needs fastapi: pip install 'nemo_desta[serve]'") from error

from nemo_desta.serving.errors import ApiError
from nemo_desta.serving.settings import ServerSettings

T = TypeVar("T")
Message = dict[str, Any]

#: How long, and how much, is still read and thrown away after a refusal.
LINGER_SECS = 10.0
LINGER_BYTES = 1 << 30


class ClientGone(Exception):
    """The client has closed the connection."""


class Receiving:
    """Bodies that are being read. ``num_bodies``: how many, ``num_bytes``: what has come of them and is still held."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.num_bodies = 0
        self.num_bytes = 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytearray]:
        """The whole body of a request; its memory counts until the context ends.

        Raises:
            ApiError: 413 too large, as soon as it is known; 408 too slow; 429 too much for all that are being read.
            ClientGone: it broke off.
        """
        body = bytearray()
        self.num_bodies += 1
        try:
            await self._read(request, body)
            yield body
        finally:
            self.num_bodies -= 1
            self.num_bytes -= len(body)
            body.clear()  # now, whoever still holds it

    async def _read(self, request: Request, body: bytearray) -> None:
        settings, begun = self.settings, time.monotonic()
        announced = request.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > settings.max_body_bytes:
            raise self._too_large()
        while True:
            earned = len(body) / (1000 * settings.min_body_kb_per_sec) - (time.monotonic() - begun)
            try:
                patience = settings.body_timeout_secs + min(0.0, earned)
                message = await asyncio.wait_for(request.receive(), patience)
            except asyncio.TimeoutError as error:
                raise self._too_slow(len(body), time.monotonic() - begun) from error
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk = message.get("body", b"")
            body += chunk
            self.num_bytes += len(chunk)
            if len(body) > settings.max_body_bytes:
                raise self._too_large()
            if self.num_bytes > settings.max_receiving_mb * 2**20:
                full = f"the bodies that are being read fill {settings.max_receiving_mb} MB; try again in a moment"
                raise ApiError(429, full, code="queue_full", retry_after=1)
            if not message.get("more_body", False):
                return

    def _too_large(self) -> ApiError:
        limit = self.settings.max_body_bytes
        return ApiError(413, f"the body may have {limit} bytes at most", code="body_too_large")

    def _too_slow(self, size: int, secs: float) -> ApiError:
        settings = self.settings
        return ApiError(
            408,
            f"{size} bytes of the body came in {secs:.1f} s; after {settings.body_timeout_secs:g} s at least "
            f"{settings.min_body_kb_per_sec:g} kB per second must come, and never nothing for so long",
            code="body_timeout",
        )


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client hangs up. The body must have been read.

    Raises:
        ClientGone: it hung up. And whatever ``work`` raises.
    """
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        gone.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait({working})


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Lingering:
    """ASGI middleware: an answer that comes before the whole request was read is sent at once, then the rest of the
    request is read and thrown away for a while. Closing at once would reset the connection, and the client, still
    busy sending, would never see why it was refused.

    Query strings go on arrival: no route takes one, and whoever logs the address would log a key in it.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        scope["query_string"] = b""
        headers = dict(scope["headers"])
        more = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"  # is to come
        sends = b"expect" not in headers  # a client that waits for our go-ahead gets it when it is asked for the body

        async def watched_receive() -> Message:
            nonlocal more, sends
            sends = True
            message = await receive()
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                more = False
            return message

        async def lingering_send(message: Message) -> None:
            nonlocal sends
            if more and message["type"] == "http.response.start":  # else the rest would be waited for, without a limit
                sends = sends and message["status"] != 408
                message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if not (more and sends and last):
                return await send(message)
            await send({**message, "more_body": True})
            until, num_bytes = time.monotonic() + LINGER_SECS, 0
            while more and num_bytes < LINGER_BYTES and (left := until - time.monotonic()) > 0:
                try:
                    rest = await asyncio.wait_for(watched_receive(), left)
                except asyncio.TimeoutError:
                    break
                num_bytes += len(rest.get("body", b""))
            await send({"type": "http.response.body", "body": b""})

        await self.app(scope, watched_receive, lingering_send)
