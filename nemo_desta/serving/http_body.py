"""Request bodies: reading them within limits, draining them after an early error, and noticing disconnects."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

try:
    from fastapi import Request
except ImportError as error:
    raise ImportError("the server needs fastapi: pip install 'nemo_desta[serve]'") from error

from nemo_desta.serving.errors import ApiError, queue_full
from nemo_desta.serving.settings import ServerSettings

T = TypeVar("T")
Message = dict[str, Any]

#: Limits of what is read and dropped after an early error response.
LINGER_SECS = 10.0
LINGER_BYTES = 1 << 30


class ClientGone(Exception):
    """The client has disconnected."""


class Receiving:
    """All bodies that are being read. ``num_bodies``: their number; ``num_bytes``: received bytes still in memory."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.num_bodies = 0
        self.num_bytes = 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytearray]:
        """The complete body of a request; its memory counts until the context ends.

        Raises:
            ApiError: 413 as soon as the body is too large; 408 if it is too slow; 429 if all bodies use too much.
            ClientGone: the client disconnected.
        """
        body = bytearray()
        self.num_bodies += 1
        try:
            await self._read(request, body)
            yield body
        finally:
            self.num_bodies -= 1
            self.num_bytes -= len(body)
            body.clear()  # frees the memory even if a reference remains

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
                raise ApiError(
                    408,
                    f"received {len(body)} bytes of the body in {time.monotonic() - begun:.1f} s; expected no pause "
                    f"of {settings.body_timeout_secs:g} s, and after that time at least "
                    f"{settings.min_body_kb_per_sec:g} kB per second",
                    code="body_timeout",
                ) from error
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk = message.get("body", b"")
            body += chunk
            self.num_bytes += len(chunk)
            if len(body) > settings.max_body_bytes:
                raise self._too_large()
            if self.num_bytes > settings.max_receiving_mb * 2**20:
                raise queue_full(f"the bodies that are being read use all {settings.max_receiving_mb} MB")
            if not message.get("more_body", False):
                return

    def _too_large(self) -> ApiError:
        limit = self.settings.max_body_bytes
        return ApiError(413, f"the body is larger than the limit of {limit} bytes", code="body_too_large")


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client disconnects. The body must have been read.

    Raises:
        ClientGone: the client disconnected. Exceptions of ``work`` are passed on.
    """
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
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


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Lingering:
    """ASGI middleware: a response that is ready before the whole request was read is sent at once; then the rest of
    the request is read and dropped, within limits. Closing at once would reset the connection, and a client that is
    still sending would never see the error.

    Query strings are removed on arrival: no route uses one, and a log of the address could reveal a key in it.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        scope["query_string"] = b""
        headers = dict(scope["headers"])
        more = (
            b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
        )  # bytes of the body are still to come
        sends = b"expect" not in headers  # "Expect: 100-continue": the client sends only after our receive()

        async def watched_receive() -> Message:
            nonlocal more, sends
            sends = True
            message = await receive()
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                more = False
            return message

        async def lingering_send(message: Message) -> None:
            nonlocal sends
            if more and message["type"] == "http.response.start":  # else uvicorn would wait for the rest without limit
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
