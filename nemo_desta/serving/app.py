"""The HTTP routes: OpenAI's chat completions and models, health, metrics.

FastAPI's own parsing is not used: bodies are read within limits, and every error has OpenAI's format.
"""

import hmac
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response

from nemo_desta.answering.audio_embeddings import LocalChatModel
from nemo_desta.errors import ConfigError
from nemo_desta.serving.batching import Engine
from nemo_desta.serving.errors import ApiError, forget, log_failure
from nemo_desta.serving.http_body import ClientGone, Lingering, while_connected
from nemo_desta.serving.responses import DONE, ChatResponse, event
from nemo_desta.serving.service import Call, Service
from nemo_desta.serving.settings import ServerSettings

logger = logging.getLogger(__name__)

API_KEY = "NEMO_DESTA_API_KEY"
#: The status of a request whose client has disconnected; only the metrics show it.
GONE = 499


def create_app(
    model: LocalChatModel,
    settings: ServerSettings,
    *,
    name: str = "nemo_desta",
    root: str | None = None,
    make_engine: Callable[[], Engine] | None = None,
) -> FastAPI:
    """The application of a model; ``app.state.service`` is its `Service`.

    Args:
        name: the model's name for clients, unless the settings have one. root: the model's source, shown in the list.
        make_engine: default `ChatEngine`.

    Raises:
        ConfigError: the API key in the environment is empty.
    """
    service = Service(model, settings.name or name, settings, make_engine=make_engine)
    guards = [Depends(host_check(settings))]
    for_clients = [*guards, Depends(key_check(os.environ.get(API_KEY)))]

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(title="nemo_desta", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.service = service
    app.add_middleware(Lingering)
    card = {"id": service.name, "object": "model", "created": int(time.time()), "owned_by": "nemo_desta"}
    card |= {"root": Path(root).name} if root else {}

    @app.post("/v1/chat/completions", dependencies=for_clients)
    async def chat_completions(request: Request) -> Response:
        return await _answer(request, service)

    @app.get("/v1/models", dependencies=for_clients)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{wanted:path}", dependencies=for_clients)
    async def one_model(wanted: str) -> dict[str, Any]:
        if wanted != service.name:
            message = f"the model '{wanted:.200}' does not exist; served here: {service.name}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return card

    @app.get("/health", dependencies=guards)
    async def health() -> Response:
        return JSONResponse({"status": service.status}, status_code=200 if service.status == "ready" else 503)

    @app.get("/metrics", dependencies=guards)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return _refusal(error)

    @app.exception_handler(404)
    async def no_route(request: Request, error: Exception) -> Response:
        return _refusal(ApiError(404, f"no such address: {request.url.path:.200}", code="not_found"))

    @app.exception_handler(405)
    async def no_method(request: Request, error: Exception) -> Response:
        return _refusal(ApiError(405, f"{request.method} is not for {request.url.path:.200}", code="bad_method"))

    return app


async def _answer(request: Request, service: Service) -> Response:
    arrived = time.monotonic()
    call: Call | None = None
    status = GONE
    try:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # any web page may send forms and plain text without a CORS preflight
            raise ApiError(415, f"content-type must be application/json, found '{kind:.100}'", code="no_json")
        call = await service.within(arrived, _receive(request, service, arrived))
        await while_connected(request, service.within(arrived, call.begin()))
        if call.request.stream:
            status = 200  # of the stream's start; the stream closes the call itself
            return _Stream(request, call, service)
        deltas = await while_connected(request, service.within(arrived, _all(call)))
        whole = ChatResponse(service.name).whole(deltas, call.usage)
        status = 200
        call.close(status)
        return JSONResponse(whole)
    except ApiError as error:
        status = error.status
        forget(error)
        return _refusal(error)
    except ClientGone as error:
        forget(error)
        return Response(status_code=GONE)
    except Exception as error:
        log_failure(logger, "a request failed", error)
        forget(error)
        status = 500
        return _refusal(ApiError(500, "internal error; see the server's log"))
    finally:
        if call is None:
            service.metrics.requests.labels(str(status)).inc()
        elif status != 200:
            call.close(status)


async def _receive(request: Request, service: Service, arrived: float) -> Call:
    """Reads the body; only a complete and valid one is queued."""
    service.check_place()
    async with service.receiving.body(request) as body:
        return await service.open(body, arrived)


async def _all(call: Call) -> list[Any]:
    return [delta async for deltas in call.deltas() for delta in deltas]


class _Stream(Response):
    """Server-sent events. The call is closed however the stream ends."""

    media_type = "text/event-stream"

    def __init__(self, request: Request, call: Call, service: Service) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.request = request
        self.call = call
        self.service = service
        self.response = ChatResponse(service.name)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        status = GONE
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            last = b""
            try:
                await while_connected(self.request, self.service.within(self.call.arrived, self._write(send)))
                status = 200
            except ApiError as error:
                status, last = error.status, event(error.body) + DONE
                forget(error)
            self.call.close(status)  # first: the next request must not wait until the client has read the rest
            if last:
                await send({"type": "http.response.body", "body": last, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except ClientGone as error:
            forget(error)
        finally:
            self.call.close(status)

    async def _write(self, send: Any) -> None:
        options = self.call.request.stream_options
        with_usage = options is not None and options.include_usage

        async def write(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        await write(self.response.opening(with_usage=with_usage))
        async for deltas in self.call.deltas():
            if data := b"".join(self.response.piece(delta, with_usage=with_usage) for delta in deltas):
                await write(data)
        await write((self.response.usage(self.call.usage) if with_usage else b"") + DONE)


def _refusal(error: ApiError) -> Response:
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


def key_check(key: str | None) -> Callable[[Request], Any]:
    """A dependency that requires ``Authorization: Bearer <key>``; a key of None requires nothing."""
    if key is not None and not key.strip():
        raise ConfigError(f"{API_KEY} is set but empty; unset it, or give it a key")
    expected = None if key is None else f"Bearer {key.strip()}".encode()

    async def check(request: Request) -> None:
        given = request.headers.get("authorization", "").encode("latin-1")
        if expected is not None and not hmac.compare_digest(given, expected):
            raise ApiError(401, "no valid API key: send it as 'Authorization: Bearer <key>'", code="invalid_api_key")

    return check


def host_check(settings: ServerSettings) -> Callable[[Request], Any]:
    """A dependency for servers on loopback: it rejects other Host headers, which protects from DNS rebinding."""
    known = {"localhost", "127.0.0.1", "[::1]", settings.host, *settings.allowed_hosts}

    async def check(request: Request) -> None:
        host = re.sub(r":\d+$", "", request.headers.get("host", ""))
        if settings.loopback and host not in known:
            message = f"unknown Host '{host:.100}': add it to allowed_hosts if it is yours"
            raise ApiError(403, message, code="unknown_host")

    return check
