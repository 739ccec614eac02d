"""``desta serve engine=vllm`` as far as it needs no vLLM: refused settings, and `Guard` in front of an application."""

import asyncio
import importlib.util
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI, Request

from nemo_desta.errors import ConfigError
from nemo_desta.models.model_source import ModelSource
from nemo_desta.serving.app import host_check, key_check
from nemo_desta.serving.http_body import Lingering, Receiving
from nemo_desta.serving.server import open_and_serve
from nemo_desta.serving.settings import Served, ServerSettings
from nemo_desta.serving.vllm_server import Guard, server_arguments

KEY = "a key"


@pytest.mark.parametrize(
    ("settings", "vllm", "match"),
    [
        ({"max_queue": 3, "transcriber": True}, {}, "max_queue, transcriber: limits of our own server"),
        ({"max_new_tokens": 9}, {}, "max_new_tokens"),
        ({}, {"port": 80}, "vllm.port cannot be given: it follows from port"),
        ({}, {"max_model_len": 80}, "vllm.max_model_len cannot be given: it follows from max_context"),
    ],
)
def test_settings_that_vllms_server_cannot_keep_are_refused_by_name(settings, vllm, match):
    served = Served(model="no_folder", engine="vllm", vllm=vllm)
    with pytest.raises(ConfigError, match=match):
        open_and_serve(served, ServerSettings(port=0, **settings))


def test_settings_of_our_own_engine_are_refused_by_name(tmp_path):
    for name, value in (("device", "cuda:1"), ("feature_cache", SimpleNamespace(precompute=None))):
        with pytest.raises(ConfigError, match=f"'{name}' is for engine=hf"):
            ModelSource(model=str(tmp_path), **{name: value}).for_vllm()


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_missing_vllm_is_named_with_the_way_to_get_it(tiny, tmp_path):
    from nemo_desta.models.desta import DestaModel
    from nemo_desta.vllm_plugin.chat import vllm_chat_engine

    folder = DestaModel(tiny).save_pretrained(tmp_path / "model")
    with pytest.raises(ImportError, match="constraints/vllm.txt"):
        vllm_chat_engine(folder)
    with pytest.raises(ImportError, match="constraints/vllm.txt"):
        open_and_serve(Served(model=str(folder), engine="vllm"), ServerSettings(port=0))
    with pytest.raises(ConfigError, match="vllm.model cannot be given"):
        vllm_chat_engine(folder, model="another")


def test_limits_become_arguments_of_vllm():
    found = server_arguments(ServerSettings(max_audios=3, max_audio_secs=1.5, max_context=99, drain_secs=0), 16_000)
    assert found["limit_mm_per_prompt"] == {"audio": {"count": 3, "length": 24_000}}
    assert (found["max_model_len"], found["max_num_seqs"], found["shutdown_timeout"]) == (99, 64, 0)


def application(settings, key=KEY):
    app = FastAPI()

    @app.post("/v1/echo")
    async def echo(request: Request):
        return {"length": len(await request.body())}

    @app.get("/health")
    async def health():
        return None

    app.add_middleware(Guard)
    app.add_middleware(Lingering)
    checks = {"host_check": host_check(settings), "key_check": key_check(key)}
    started = SimpleNamespace(receiving=Receiving(settings), name="m", url="http://x/v1", **checks)
    app.state.args = SimpleNamespace(nemo_desta=started)
    return app


def ask(app, *requests):
    """(method, path, body, headers) each -> the replies."""

    async def run():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            return [await client.request(m, path, content=body, headers=h) for m, path, body, h in requests]

    return asyncio.run(run())


def test_the_guard_checks_key_host_and_size_and_passes_the_body_on():
    app = application(ServerSettings(max_body_mb=1))
    good = {"Authorization": f"Bearer {KEY}"}

    async def chunks():
        for _ in range(3):
            yield b"x" * 2**19

    replies = ask(
        app,
        ("POST", "/v1/echo", b"x" * 1000, good),
        ("POST", "/v1/echo", b"x", {"Authorization": "Bearer other"}),
        ("POST", "/v1/echo", b"x", {**good, "Host": "example.org"}),
        ("POST", "/v1/echo", b"x" * (2**20 + 1), good),
        ("POST", "/v1/echo", chunks(), good),
        ("GET", "/health", b"", {}),
    )
    assert [reply.status_code for reply in replies] == [200, 401, 403, 413, 413, 200]
    assert replies[0].json() == {"length": 1000}
    codes = [reply.json()["error"]["code"] for reply in replies[1:5]]
    assert codes == ["invalid_api_key", "unknown_host", "body_too_large", "body_too_large"]


def test_the_guard_says_where_the_server_is_once_it_is_ready(capsys):
    app = application(ServerSettings())

    async def run():
        events = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

        async def receive():
            return events.pop(0)

        async def send(message):
            pass

        await app({"type": "lifespan", "state": {}}, receive, send)

    asyncio.run(run())
    assert capsys.readouterr().out == "m is served at http://x/v1\n"
