"""``desta serve engine=vllm``: vLLM's own OpenAI server with a model folder, and this package's key and limits.

vLLM's server has the routes, the queue, and the answers. `Guard` is in front of them, as a middleware of vLLM's; the
limits of connections are those of `Wire`, as in our own server.
"""

import os
import signal
from dataclasses import fields
from functools import partial
from types import SimpleNamespace
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse

from nemo_desta.config import check_keys
from nemo_desta.errors import ConfigError
from nemo_desta.perception.build import audio_rates
from nemo_desta.serving.app import API_KEY, host_check, key_check
from nemo_desta.serving.errors import ApiError
from nemo_desta.serving.http_body import ClientGone, Receiving
from nemo_desta.serving.settings import Served, ServerSettings
from nemo_desta.serving.wire import Wire
from nemo_desta.types import first_rate
from nemo_desta.vllm_plugin.chat import vllm_arguments
from nemo_desta.vllm_plugin.decoder import INSTALL

#: Limits that vLLM's server, `Guard` or `Wire` keep. The other settings are those of our own server.
KEPT = (
    *("name", "host", "port", "allowed_hosts", "max_batch_size", "max_audios", "max_audio_secs", "max_context"),
    *("max_body_mb", "max_receiving_mb", "body_timeout_secs", "min_body_kb_per_sec", "drain_secs"),
    *("max_connections", "header_timeout_secs", "send_timeout_secs"),
)
#: Arguments of vLLM's server that have a setting here.
OURS = {
    "host": "host",
    "port": "port",
    "uds": "host",
    "api_key": API_KEY,
    "served_model_name": "name",
    "max_model_len": "max_context",
    "max_num_seqs": "max_batch_size",
    "limit_mm_per_prompt": "max_audios, max_audio_secs",
    "shutdown_timeout": "drain_secs",
}
#: Paths that need no key, as in our own server.
OPEN = ("/health", "/metrics")
#: Outermost last.
MIDDLEWARE = ["nemo_desta.serving.vllm_server.Guard", "nemo_desta.serving.http_body.Lingering"]


def serve_with_vllm(served: Served, settings: ServerSettings, sock: Any) -> None:
    """Serve until SIGTERM or Ctrl-C, on a listening socket.

    Raises:
        ImportError: vLLM is not installed. ConfigError: an argument that vLLM's server does not have, or that has a
        setting here. Others as `vllm_arguments`.
    """
    config, engine = vllm_arguments(**served.for_vllm(), **served.vllm)
    os.environ.setdefault("VLLM_PLUGINS", "nemo_desta")
    try:
        import uvloop
        from vllm.entrypoints.launchers.api_server.entry import run_server_worker
        from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
        from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError as error:
        raise ImportError(INSTALL) from error
    cli_env_setup()
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(["--model", engine["model"]])
    host, port = sock.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    name = settings.name or served.public_name
    given = {**server_arguments(settings, first_rate(audio_rates(config.perception))), **engine}
    check_keys(given, vars(args), "vllm")
    vars(args).update(given, served_model_name=[name], host=host, port=port)
    args.middleware = [*args.middleware, *MIDDLEWARE]
    checks = {"host_check": host_check(settings), "key_check": key_check(os.environ.get(API_KEY))}
    args.nemo_desta = SimpleNamespace(receiving=Receiving(settings), name=name, url=f"{address}/v1", **checks)
    validate_parsed_serve_args(args)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until vLLM's server has its own handlers
    uvloop.run(run_server_worker(address, sock, args, http=partial(Wire, settings=settings)))


def check_settings(served: Served, settings: ServerSettings) -> None:
    """Raise `ConfigError` for settings that vLLM's server cannot keep."""
    default, names = ServerSettings(), [one.name for one in fields(settings)]
    changed = [name for name in names if getattr(settings, name) != getattr(default, name)]
    if lost := [name for name in changed if name not in KEPT]:
        raise ConfigError(
            f"{', '.join(lost)}: limits of our own server (engine=hf); vLLM's has none like them (docs/vllm.md)"
        )
    if doubled := [name for name in OURS if name in served.vllm]:
        raise ConfigError(f"vllm.{doubled[0]} cannot be given: it follows from {OURS[doubled[0]]}")


def server_arguments(settings: ServerSettings, sampling_rate: int) -> dict[str, Any]:
    """Our limits as arguments of vLLM's server; the caller's own come after them."""
    length = int(settings.max_audio_secs * sampling_rate)
    return {
        "max_model_len": settings.max_context,
        "max_num_seqs": settings.max_batch_size,
        "limit_mm_per_prompt": {"audio": {"count": settings.max_audios, "length": length}},
        "shutdown_timeout": int(settings.drain_secs),
        "allowed_media_domains": ["none"],  # the server fetches nothing; vLLM reads an empty list as all
        "disable_fastapi_docs": True,
    }


class Guard:
    """ASGI middleware: the key, the Host header and the size and pace of a body, with the errors of our own server.

    vLLM's own check of a key leaves some addresses open that answer, too.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        started = scope["app"].state.args.nemo_desta
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, _telling(started, send))
        if scope["type"] != "http":
            return await send({"type": "websocket.close"})
        request = Request(scope, receive)
        try:
            await started.host_check(request)
            if request.url.path not in OPEN:
                await started.key_check(request)
            async with started.receiving.body(request) as body:
                whole = [{"type": "http.request", "body": bytes(body), "more_body": False}]
        except ApiError as error:
            refusal = JSONResponse(error.body, status_code=error.status, headers=error.headers)
            return await refusal(scope, receive, send)
        except ClientGone:
            return

        async def again() -> Any:
            return whole.pop() if whole else await receive()

        await self.app(scope, again, send)


def _telling(started: Any, send: Any) -> Any:
    """``send``, which prints where the server is once it is ready."""

    async def tell(message: Any) -> None:
        if message["type"] == "lifespan.startup.complete":
            print(f"{started.name} is served at {started.url}", flush=True)
        await send(message)

    return tell
