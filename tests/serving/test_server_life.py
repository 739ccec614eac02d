"""A server in trouble: clients that hang up, no places, no time, an engine that breaks, an end that is asked for."""

import asyncio
import concurrent.futures
import dataclasses
import importlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml
from openai import APIError, APIStatusError, InternalServerError, RateLimitError

from benchmarks import serving as serving_benchmark
from nemo_desta.answering.engine import ChatEngine
from nemo_desta.config import parse
from nemo_desta.errors import ConfigError
from nemo_desta.serving.server import listen
from nemo_desta.serving.settings import Served, ServerSettings
from tests.serving.serving_tools import (
    NAME,
    alive,
    audio_part,
    body_of,
    client,
    counters,
    encoded,
    noise,
    post,
    served,
    text_part,
    until,
    user,
)

ROOT = Path(__file__).resolve().parents[2]
LONG = {"max_tokens": 1500, "temperature": 0}
MIDDLE = {"max_tokens": 100, "temperature": 0}


@pytest.fixture
def pool():
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        yield pool


def ask(server, text="Hello", **more):
    return client(server).chat.completions.create(model=NAME, messages=[user(text)], **{"temperature": 0} | more)


def running(server):
    return server.service.batcher.num_running


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_is_stopped_when_its_client_hangs_up(model, stream):
    with served(model) as server:
        with httpx.Client() as http:
            with (
                http.stream("POST", f"{server.url}/chat/completions", json=body_of(**LONG, stream=True), timeout=30)
                if stream
                else _hanging_up(http, server) as response
            ):
                if stream:
                    lines = response.iter_lines()
                    for _ in range(5):
                        next(lines)
                assert running(server) == 1
        until(lambda: running(server) == 0, 5)
        now = counters(server)
        assert now['nemo_desta_requests_total{status="499"}'] == 1
        assert now["nemo_desta_new_tokens_total"] < 1400  # of 1500
        assert server.service.num_waiting == 0 and alive(server)


class _hanging_up:
    """A request whose client gives up while the server still writes."""

    def __init__(self, http, server):
        self.http, self.server = http, server

    def __enter__(self):
        self.thread = threading.Thread(target=self._ask)
        self.thread.start()
        until(lambda: running(self.server) == 1)

    def __exit__(self, *_):
        self.thread.join()

    def _ask(self):
        with pytest.raises(httpx.ReadTimeout):
            self.http.post(
                f"{self.server.url}/chat/completions", json=body_of(**LONG), timeout=httpx.Timeout(5, read=0.7)
            )


@contextmanager
def gated(model, **settings):
    """A server whose engine writes only while its gate is open; the gate."""
    gate = threading.Event()
    gate.set()

    class Gated(ChatEngine):
        def step(self):
            assert gate.wait(30)
            return super().step()

    size = settings.pop("max_batch_size", 8)
    try:
        with served(model, make_engine=lambda: Gated(model, max_batch_size=size), **settings) as server:
            yield server, gate
    finally:
        gate.set()


def test_a_full_queue_refuses_and_says_when_to_come_back(model, pool):
    with gated(model, max_batch_size=1, max_queue=2) as (server, gate):
        gate.clear()
        long = pool.submit(ask, server, **MIDDLE)
        until(lambda: running(server) == 1)
        waiting = [pool.submit(ask, server, max_tokens=3) for _ in range(2)]
        until(lambda: server.service.num_waiting == 2)
        with pytest.raises(RateLimitError) as caught:
            ask(server)
        assert caught.value.response.headers["retry-after"] == "1" and caught.value.code == "queue_full"
        assert counters(server)["nemo_desta_requests_waiting"] == 2
        gate.set()
        assert long.result().usage.completion_tokens == MIDDLE["max_tokens"]
        assert all(w.result().usage.completion_tokens <= 3 for w in waiting)
        assert alive(server)


def test_the_memory_of_those_who_wait_has_a_limit(model):
    with served(model, max_waiting_mb=1) as server:
        body = body_of(user("x"), metadata={"long": "x" * (2 << 20)})
        response = post(server, body)
        assert response.status_code == 429 and alive(server)


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_takes_too_long_is_ended(model, stream):
    with served(model, request_timeout_secs=0.5) as server:
        if stream:
            with pytest.raises(APIError, match="no answer within 0.5 s"):
                list(ask(server, **LONG, stream=True))
        else:
            with pytest.raises(InternalServerError, match="no answer within 0.5 s") as caught:
                ask(server, **LONG)
            assert caught.value.status_code == 504
        until(lambda: running(server) == 0, 5)
        assert alive(server)


def test_an_upload_that_stalls_frees_its_place(model):
    with served(model, body_timeout_secs=0.5, max_queue=1) as server:
        host, port = server.url.split("/")[2].split(":")
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
            "Content-Length: 1000\r\n\r\n{"
        )
        with socket.create_connection((host, int(port)), timeout=30) as sock:
            sock.sendall(head.encode())
            assert sock.recv(100).startswith(b"HTTP/1.1 408")
            assert server.service.num_waiting == 0 and alive(server)


class Breakable(ChatEngine):
    """Breaks in `step` when told to."""

    broken = False
    sizes: list[int] = []

    def step(self):
        Breakable.sizes.append(self.num_active)
        if Breakable.broken:
            Breakable.broken = False
            raise RuntimeError("out of memory, say")
        return super().step()


def test_an_engine_that_breaks_fails_what_runs_and_nothing_else(model, pool):
    with served(model, make_engine=lambda: Breakable(model, max_batch_size=2)) as server:
        stream = ask(server, **LONG, stream=True)
        whole = pool.submit(ask, server, **LONG)
        until(lambda: running(server) == 2)
        third = pool.submit(ask, server, max_tokens=3)
        until(lambda: server.service.num_waiting == 1)
        Breakable.broken = True
        with pytest.raises(APIError, match="the engine failed"):
            list(stream)
        with pytest.raises(InternalServerError, match="the engine failed"):
            whole.result()
        assert third.result().usage.completion_tokens <= 3
        assert server.service.batcher.num_failures == 1 and alive(server)


def test_an_engine_that_always_breaks_is_reported(model):
    class Broken(ChatEngine):
        def step(self):
            if self.num_active and broken:
                raise RuntimeError("the device is gone, say")
            return super().step()

    broken = False
    with served(model, make_engine=lambda: Broken(model)) as server:
        assert alive(server)
        broken = True
        statuses = [post(server, body_of()).status_code for _ in range(4)]
        assert statuses == [500, 500, 500, 503]
        health = httpx.get(server.url.replace("/v1", "/health"))
        assert health.status_code == 503 and health.json() == {"status": "failed"}


def test_audio_that_cannot_be_encoded_fails_its_own_request(model, pool):
    with served(model) as server:
        encode = server.service.batcher.encode

        def fails_on_long_clips(clips):
            time.sleep(0.05)  # so that others wait, and join in one group
            if any(len(clip.audio) > 50_000 for clip in clips):
                raise RuntimeError("too much for the encoder")
            return encode(clips)

        server.service.batcher.encode = fails_on_long_clips
        lengths = [1, 4, 2, 1, 4, 1]
        messages = [user(audio_part(encoded(noise(secs, i))), text_part("?")) for i, secs in enumerate(lengths)]
        tasks = [pool.submit(post, server, body_of(message)) for message in messages]
        statuses = [task.result().status_code for task in tasks]
        assert statuses == [500 if secs == 4 else 200 for secs in lengths]
        assert server.service.batcher.num_failures == 0 and alive(server)


def test_the_cache_holds_no_more_than_it_may(model, pool):
    """Each conversation needs about 60 positions: two fit."""
    Breakable.sizes.clear()
    with served(model, max_batch_tokens=150, make_engine=lambda: Breakable(model, max_batch_size=8)) as server:
        answers = list(pool.map(lambda i: ask(server, f"Question {i}?", max_tokens=30), range(6)))
        assert all(a.usage.total_tokens > 30 for a in answers)
        assert max(Breakable.sizes) == 2
        large = ask(server, max_tokens=200)  # alone, it is not refused
        assert large.usage.completion_tokens == 200


def test_draining_refuses_what_is_new_and_finishes_what_runs(model, pool):
    with gated(model) as (server, gate):
        expected = ask(server, **MIDDLE).choices[0].message.content
        gate.clear()
        task = pool.submit(ask, server, **MIDDLE)
        until(lambda: running(server) == 1)
        server._loop.call_soon_threadsafe(server.begin_drain)
        until(lambda: server.service.draining)
        with pytest.raises(APIStatusError) as caught:
            ask(server)
        assert caught.value.status_code == 503 and int(caught.value.response.headers["retry-after"]) > 0
        health = httpx.get(server.url.replace("/v1", "/health"))
        assert health.status_code == 503 and health.json() == {"status": "draining"}
        gate.set()
        assert task.result().choices[0].message.content == expected
        until(lambda: server.should_exit)


def test_draining_has_an_end(model, pool):
    with served(model, drain_secs=0.2) as server:
        task = pool.submit(ask, server, **LONG)
        until(lambda: running(server) == 1)
        server._loop.call_soon_threadsafe(server.begin_drain)
        with pytest.raises(InternalServerError, match="shutting down") as caught:
            task.result()
        assert caught.value.status_code == 503
        until(lambda: server.should_exit)


def test_an_engine_that_is_stuck_does_not_hold_up_the_end(model, pool, monkeypatch):
    monkeypatch.setattr("nemo_desta.serving.batching.STOP_SECS", 0.3)
    release = threading.Event()

    class Stuck(ChatEngine):
        def add(self, chats):
            if chats[0].sampling.max_new_tokens == MIDDLE["max_tokens"]:
                release.wait(30)
            return super().add(chats)

    try:
        with served(model, drain_secs=0.2, make_engine=lambda: Stuck(model)) as server:
            task = pool.submit(ask, server, **MIDDLE)
            until(lambda: server.service.batcher._joining)
            server._loop.call_soon_threadsafe(server.begin_drain)
            with pytest.raises(InternalServerError, match="shutting down"):
                task.result(timeout=10)
            until(lambda: server.should_exit)
    finally:
        release.set()


def test_an_address_that_is_taken_is_named():
    with listen(ServerSettings(port=0)) as sock:
        with pytest.raises(ConfigError, match="cannot listen on 127.0.0.1"):
            listen(ServerSettings(port=sock.getsockname()[1]))


def test_a_server_for_everyone_without_a_key_is_warned_about(monkeypatch, caplog):
    monkeypatch.delenv("NEMO_DESTA_API_KEY", raising=False)
    listen(ServerSettings(port=0)).close()
    assert not caplog.records
    listen(ServerSettings(port=0, host="0.0.0.0")).close()
    assert "anyone who reaches 0.0.0.0" in caplog.text
    monkeypatch.setenv("NEMO_DESTA_API_KEY", "x")
    caplog.clear()
    listen(ServerSettings(port=0, host="0.0.0.0")).close()
    assert not caplog.records


def test_the_config_and_the_settings_agree():
    config = yaml.safe_load((ROOT / "conf" / "use" / "serve.yaml").read_text())
    served = {field.name: config.pop(field.name) for field in dataclasses.fields(Served)}
    assert parse(Served, {**served, "model": "x"}) == Served(model="x")
    assert parse(ServerSettings, config, "serve") == ServerSettings()
    assert set(config) == {field.name for field in dataclasses.fields(ServerSettings)}


@pytest.mark.parametrize("missing", ["uvicorn", "fastapi", "prometheus_client", "pydantic"])
def test_a_missing_package_is_named_with_its_install_line(missing, monkeypatch):
    modules = {"uvicorn": "server", "fastapi": "http_body", "prometheus_client": "metrics", "pydantic": "protocol"}
    module = f"nemo_desta.serving.{modules[missing]}"
    for name in [name for name in sys.modules if name.partition(".")[0] == missing]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, module)
    with pytest.raises(ImportError, match=re.escape(f"needs {missing}: pip install 'nemo_desta[serve]'")):
        importlib.import_module(module)


@pytest.mark.slow
def test_sigterm_lets_the_command_finish_its_answers_and_exit_with_0(model, tmp_path, pool):
    folder = tmp_path / NAME
    model.save_pretrained(folder)
    command = [sys.executable, str(ROOT / "examples" / "desta_serve.py"), f"model={folder}", "port=0", "device=cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "log", "w+") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            url = next((line.split()[-1] for line in process.stdout if " is served at " in line), None)
            assert url, Path(tmp_path / "log").read_text()[-3000:]

            class there:
                pass

            there.url = url
            stream = iter(ask(there, **LONG, stream=True))
            next(stream)
            whole = pool.submit(ask, there, max_tokens=1000)
            until(lambda: counters(there)["nemo_desta_requests_running"] == 2)
            process.send_signal(signal.SIGTERM)
            until(lambda: httpx.get(url.replace("/v1", "/health")).status_code == 503)
            assert post(there, body_of()).status_code == 503
            chunks = list(stream)
            assert chunks[-1].choices[0].finish_reason == "length"
            assert whole.result().usage.completion_tokens == 1000
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", NAME]  # nothing is left behind


@pytest.mark.slow
def test_16_clients_at_once_meet_no_error(tmp_path):
    """The benchmark (docs/serving.md) measures their throughput, for a minute."""
    with serving_benchmark.server(serving_benchmark.demo_model(tmp_path / "demo")) as running:
        result = asyncio.run(serving_benchmark.measure(running.url, 16, 3.0, 64))
    assert not result["errors"] and result["together"]["answers"] >= 16


@pytest.mark.slow
def test_the_command_tells_what_is_wrong_without_a_stack(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "desta_serve.py"), "model=nowhere/at/all", "port=0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    for more, words in (([], "nowhere/at/all"), (["+prt=1"], "Did you mean 'port'")):
        result = subprocess.run([*command, *more], cwd=tmp_path, env=environment, text=True, capture_output=True)
        assert result.returncode != 0 and words in result.stderr, result.stderr[-2000:]
        assert "Traceback" not in result.stderr
