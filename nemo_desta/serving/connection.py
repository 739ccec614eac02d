"""The wire below the routes: bodies read within a limit, refusals that arrive, clients that hang up."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

try:
    from fastapi import Request
except ImportError as error:
    raise ImportError("the server needs fastapi: pip install 'nemo_desta[serve]'") from error

from nemo_desta.serving.errors import ApiError

T = TypeVar("T")
Message = dict[str, Any]

#: How long, and how much, is still read and thrown away after a refusal.
LINGER_SECS = 10.0
LINGER_BYTES = 1 << 30


class ClientGone(Exception):
    """The client has closed the connection."""


async def read_body(request: Request, max_bytes: int, hold: Callable[[int], None]) -> bytes:
    """The whole body; nothing beyond the limit is ever kept. ``hold`` is told its size as it grows, and may raise.

    Raises:
        ApiError: 413 as soon as it is known. ClientGone: it broke off.
    """
    too_large = ApiError(413, f"the body may have {max_bytes} bytes at most", code="body_too_large")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > max_bytes:
        raise too_large
    chunks, size = [], 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > max_bytes:
            raise too_large
        hold(size)
        if not message.get("more_body", False):
            return b"".join(chunks)


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
    busy sending, would never see why it was refused."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        chunked = b"transfer-encoding" in headers
        waits = b"expect" in headers  # for our go-ahead, which asking for the body would give
        unread = (chunked or headers.get(b"content-length", b"0") != b"0") and not waits

        async def watched_receive() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread or waits and message["type"] == "http.request"
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                unread = False
            return message

        async def lingering_send(message: Message) -> None:
            if not unread or message["type"] != "http.response.body" or message.get("more_body", False):
                return await send(message)
            await send({**message, "more_body": True})
            until, num_bytes = time.monotonic() + LINGER_SECS, 0
            while unread and num_bytes < LINGER_BYTES and (left := until - time.monotonic()) > 0:
                try:
                    rest = await asyncio.wait_for(watched_receive(), left)
                except asyncio.TimeoutError:
                    break
                num_bytes += len(rest.get("body", b""))
            await send({"type": "http.response.body", "body": b""})

        await self.app(scope, watched_receive, lingering_send)
