"""Start, run and end a server: its socket, its signals, its warnings.

SIGTERM (and the first Ctrl-C) drains: new requests get 503, those that are here are answered, then the process ends
with status 0. A second signal ends it at once.
"""

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from nemo_desta.config import MISSING, nearest, parse
from nemo_desta.errors import ConfigError
from nemo_desta.serving.batching import Engine
from nemo_desta.serving.settings import ServerSettings

try:
    import uvicorn
except ImportError as error:
    raise ImportError("the server needs uvicorn: pip install 'nemo_desta[serve]'") from error

from nemo_desta.serving.app import API_KEY, create_app
from nemo_desta.serving.wire import Wire, allow_files

if TYPE_CHECKING:
    from nemo_desta.answering.audio_frontend import AudioFrontend
    from nemo_desta.models.desta import DestaModel

logger = logging.getLogger(__name__)

ENGINES = ("hf", "vllm")


@dataclass(frozen=True)
class Served:
    """What is served, beside how: see conf/use/serve.yaml."""

    model: str = MISSING
    llm: str | None = None
    encoders: dict[str, str] | None = None
    device: str | None = None
    check_identity: bool = True
    trust_remote_code: bool = False
    allow_targets: list[str] = field(default_factory=list)
    engine: str = "hf"
    vllm: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ConfigError(f"unknown engine '{self.engine}'.{nearest(self.engine, ENGINES)}")
        if self.engine == "vllm" and self.device is not None:
            raise ConfigError("'device' is for engine=hf; vLLM takes the GPUs that it sees")
        if self.engine != "vllm" and self.vllm:
            raise ConfigError("'vllm' holds arguments of engine=vllm")


def run_serve(cfg: DictConfig | Mapping[str, Any]) -> None:
    """What `examples/desta_serve.py` runs: open a model folder and serve it until a signal ends it.

    Raises:
        ConfigError: an unknown or wrong setting, an address that cannot be had, a model that cannot be opened.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else dict(cfg)
    served = parse(Served, {f.name: plain.pop(f.name) for f in fields(Served) if f.name in plain}, "serve")
    settings = parse(ServerSettings, plain, "serve")
    if settings.max_context is None:  # a longer prompt would be an error of vLLM's loop, which is everybody's
        settings = replace(settings, max_context=served.vllm.get("max_model_len"))
    with listen(settings) as sock:  # before the model is loaded: that may take minutes
        try:
            model, make_engine = _open(served, settings)
        except (OSError, ValueError) as error:  # not there, not whole, other frozen parts than it was trained with
            raise ConfigError(f"cannot open the model '{served.model}': {error}") from error
        name = Path(served.model).name if Path(served.model).exists() else served.model
        serve(model, settings, name=name, root=served.model, sock=sock, make_engine=make_engine)


def serve(
    model: "DestaModel | AudioFrontend",
    settings: ServerSettings | None = None,
    *,
    name: str = "nemo_desta",
    root: str | None = None,
    sock: socket.socket | None = None,
    make_engine: Callable[[], Engine] | None = None,
) -> None:
    """Serve a model until SIGTERM or Ctrl-C; prints the URL once it is ready.

    Args:
        name, root, make_engine: see `create_app`. sock: from `listen`, if it was called before.
    """
    settings = settings or ServerSettings()
    app = create_app(model.eval(), settings, name=name, root=root, make_engine=make_engine)
    with sock or listen(settings) as sock:
        Server(app, settings).run(sockets=[sock])


def _open(
    served: Served, settings: ServerSettings
) -> "tuple[DestaModel | AudioFrontend, Callable[[], Engine] | None]":
    """The model, and what makes its engine if that is not `ChatEngine` alone."""
    names = ("llm", "encoders", "check_identity", "trust_remote_code", "allow_targets")
    given: dict[str, Any] = {name: getattr(served, name) for name in names}
    if served.engine == "hf":
        from nemo_desta.models.desta import DestaModel

        model = DestaModel.from_pretrained(served.model, device=served.device, **given)
        _leave_a_core_to_http(model)
        return model, None
    from nemo_desta.answering.vllm_decoder import vllm_chat_engine

    engines = [vllm_chat_engine(served.model, max_batch_size=settings.max_batch_size, **given, **served.vllm)]
    # One is all: a second one would find the GPU's memory taken, so the server says that it failed.
    return engines[0].model, engines.pop


def _leave_a_core_to_http(model: "DestaModel") -> None:
    """On a CPU torch's threads wait for each other at every operation; one that shares its core with the parsing of
    requests holds up all of them."""
    import torch

    if model.llm.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() - 1))


def listen(settings: ServerSettings) -> socket.socket:
    """The socket that a server with these settings listens on.

    Raises:
        ConfigError: the address is taken, or not this machine's; more connections than the process may open files.
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
    """uvicorn's server with our way to end: drain first."""

    def __init__(self, app: Any, settings: ServerSettings) -> None:
        config = uvicorn.Config(
            app,
            http=partial(Wire, settings=settings),
            ws="none",
            timeout_keep_alive=settings.keep_alive_secs,
            log_config=None,
            server_header=False,
            # Draining has its own limit; what is left then has been failed, and only the wire is to be waited for.
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
        """Signals end the server as planned: with status 0, and not by the signal itself."""
        if self.url and self._draining is None and not self.should_exit:
            self._loop.call_soon_threadsafe(self.begin_drain)
        else:
            self.should_exit = self.force_exit = True

    def begin_drain(self) -> None:
        """Drain, then end. Called in the event loop."""
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain_and_exit())

    async def _drain_and_exit(self) -> None:
        await self.service.drain()
        self.should_exit = True
