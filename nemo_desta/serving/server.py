"""Starts, runs and stops a server: its socket, its signals, its warnings.

SIGTERM and the first Ctrl-C drain the server: new requests get 503, accepted ones are answered, then the process exits
with status 0. A second signal stops it at once.
"""

import asyncio
import logging
import os
import socket
import threading
from functools import partial
from types import FrameType
from typing import Any

try:
    import uvicorn
except ImportError as error:
    raise ImportError("the server needs uvicorn: pip install 'nemo_desta[serve]'") from error

from nemo_desta.answering.audio_embeddings import LocalChatModel
from nemo_desta.errors import ConfigError
from nemo_desta.serving.app import API_KEY, create_app
from nemo_desta.serving.settings import Served, ServerSettings
from nemo_desta.serving.wire import Wire, allow_files

logger = logging.getLogger(__name__)


def open_and_serve(served: Served, settings: ServerSettings) -> None:
    """Loads a model folder and serves it until a signal stops it.

    Raises:
        ConfigError: an unavailable address, or a model that cannot be opened. Others as `serve_with_vllm`.
    """
    on_vllm = served.engine == "vllm"
    if on_vllm:
        from nemo_desta.serving.vllm_server import check_settings, serve_with_vllm

        check_settings(served, settings)
    with listen(settings) as sock:  # before loading the model, which may take minutes
        try:
            if on_vllm:
                return serve_with_vllm(served, settings, sock)
            model = _open(served)
        except (OSError, ValueError) as error:  # missing, incomplete, or other frozen parts than in training
            raise ConfigError(f"cannot open the model '{served.model}': {error}") from error
        serve(model, settings, name=served.public_name, root=served.model, sock=sock)


def serve(
    model: LocalChatModel,
    settings: ServerSettings | None = None,
    *,
    name: str = "nemo_desta",
    root: str | None = None,
    sock: socket.socket | None = None,
) -> None:
    """Serves a model until SIGTERM or Ctrl-C; prints the URL once it is ready.

    Args:
        name, root: see `create_app`. sock: the result of `listen`, if the caller has called it.
    """
    settings = settings or ServerSettings()
    app = create_app(model.eval(), settings, name=name, root=root)
    with sock or listen(settings) as sock:
        Server(app, settings).run(sockets=[sock])


def _open(served: Served) -> LocalChatModel:
    import torch

    model = served.load()
    # On a CPU, torch's threads synchronise at every operation. A thread that shares its core with HTTP parsing would
    # delay all of them, so torch gets one thread less.
    if model.llm.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() - 1))
    return model


def listen(settings: ServerSettings) -> socket.socket:
    """The listening socket of a server with these settings.

    Raises:
        ConfigError: the address is in use or not this machine's, or the connections exceed the limit of open files.
    """
    allow_files(settings.num_connections)
    if not settings.loopback and not os.environ.get(API_KEY):
        logger.warning(
            "anyone who reaches %s can use this server: set %s, or listen on 127.0.0.1", settings.host, API_KEY
        )
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen on {settings.host}:{settings.port}: {error}") from error


class Server(uvicorn.Server):
    """uvicorn's server, which drains before it stops."""

    def __init__(self, app: Any, settings: ServerSettings) -> None:
        config = uvicorn.Config(
            app,
            http=partial(Wire, settings=settings),
            ws="none",
            timeout_keep_alive=settings.keep_alive_secs,
            log_config=None,
            server_header=False,
            # Draining has its own limit. Requests left after it have failed; only their last bytes are still sent.
            timeout_graceful_shutdown=10,
        )
        super().__init__(config)
        self.service = app.state.service
        self.url = ""
        self.ready = threading.Event()
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.should_exit or not sockets:
            return
        self._loop = asyncio.get_running_loop()
        host, port = sockets[0].getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        print(f"{self.service.name} is served at {self.url}", flush=True)
        self.ready.set()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains; the process then exits with status 0 instead of dying from the signal."""
        if self.url and self._draining is None and not self.should_exit:
            self._loop.call_soon_threadsafe(self.begin_drain)
        else:
            self.should_exit = self.force_exit = True

    def begin_drain(self) -> None:
        """Drains, then stops. Must be called in the event loop."""
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain_and_exit())

    async def _drain_and_exit(self) -> None:
        await self.service.drain()
        self.should_exit = True
