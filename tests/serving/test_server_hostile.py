"""Clients that send half of something, or slowly, or never read: they cost little, and others are served meanwhile."""

import gc
import json
import logging
import select
import socket
import time
import tracemalloc
from contextlib import ExitStack, contextmanager

import httpx
import numpy as np
import pytest

from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.errors import ConfigError
from nemo_desta.serving import http_body
from nemo_desta.serving.app import API_KEY
from nemo_desta.serving.settings import ServerSettings
from nemo_desta.serving.wire import allow_files
from tests.serving.serving_tools import (
    alive,
    audio_part,
    body_of,
    counters,
    encoded,
    post,
    served,
    until,
    user,
)

LONG = {"max_tokens": 1500, "temperature": 0}


def address(server):
    host, port = server.url.split("/")[2].split(":")
    return host, int(port)


def head(server, *more, path="/v1/chat/completions", method="POST"):
    host, port = address(server)
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}:{port}", "Content-Type: application/json", *more, "", ""]
    return "\r\n".join(lines).encode()


def half_body(server, sent=b"{", announced=100_000):
    """What a client sends that announces a body and stops in the middle."""
    return head(server, f"Content-Length: {announced}") + sent


@contextmanager
def connected(server, data=b"", count=1, receive_buffer=None):
    """Sockets that have sent some bytes; a list."""
    with ExitStack() as stack:
        socks = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket())
            if receive_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.settimeout(30)
            sock.connect(address(server))
            sock.sendall(data)
            socks.append(sock)
        yield socks


def read_all(sock):
    """What comes until the other side closes; a reset is an end, too."""
    received = b""
    try:
        while data := sock.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return received


def dripping(sock, drip=b"x"):
    """What comes until the other side closes while a byte is sent now and then."""
    received = b""
    sock.setblocking(False)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            sock.send(drip)
        except OSError:
            return received
        if select.select([sock], [], [], 0.05)[0]:
            try:
                data = sock.recv(65536)
            except ConnectionResetError:
                return received
            if not data:
                return received
            received += data
    raise AssertionError("the connection is still open")


def error_of(answer):
    """Status and code of a raw answer."""
    start, _, body = answer.partition(b"\r\n\r\n")
    return int(start.split()[1]), json.loads(body)["error"]["code"]


def num_connections(server):
    return len(server.server_state.connections)


# ---- bodies


def test_half_sent_bodies_hold_no_place(model):
    with served(model, max_queue=2, body_timeout_secs=2.5) as server:
        with connected(server, half_body(server), count=20) as socks:
            until(lambda: num_connections(server) == 20)
            assert alive(server) and server.service.num_waiting == 0
            assert [error_of(read_all(sock)) for sock in socks] == [(408, "body_timeout")] * 20
        until(lambda: server.service.receiving.num_bodies == 0)
        assert counters(server)['nemo_desta_requests_total{status="408"}'] == 20
        assert server.service.receiving.num_bytes == 0 and alive(server)


def test_a_body_that_trickles_is_ended_though_it_never_stops(model):
    with served(model, body_timeout_secs=0.5, min_body_kb_per_sec=10.0) as server:
        with connected(server, half_body(server)) as [sock]:
            assert error_of(dripping(sock).replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")) == (408, "body_timeout")
        assert alive(server)


def test_a_body_that_comes_steadily_may_take_longer_than_the_timeout(model):
    body = json.dumps(body_of(user("Hello"), metadata={"long": "x" * 60_000})).encode()
    with served(model, body_timeout_secs=0.5, min_body_kb_per_sec=10.0) as server:
        with connected(server, head(server, f"Content-Length: {len(body)}", "Connection: close")) as [sock]:
            for start in range(0, len(body), 4000):  # 16 pieces in 0.8 s
                sock.sendall(body[start : start + 4000])
                time.sleep(0.05)
            assert read_all(sock).startswith(b"HTTP/1.1 200")


def test_bodies_that_are_read_have_a_memory_of_their_own(model, monkeypatch):
    monkeypatch.setattr(http_body, "LINGER_SECS", 0.5)
    with served(model, max_body_mb=1.0, max_receiving_mb=1, max_waiting_mb=64) as server:
        large = half_body(server, b"x" * 700_000, announced=900_000)
        with connected(server, large):
            until(lambda: server.service.receiving.num_bytes == 700_000)
            assert alive(server)  # small ones still fit
            with connected(server, large) as [sock]:
                assert error_of(read_all(sock)) == (429, "queue_full")
        until(lambda: server.service.receiving.num_bytes == 0)


def test_clips_count_when_they_are_decoded(model):
    silence = encoded(np.zeros(60 * 16_000, np.float32), format="flac")  # 4 MB of samples in a few kB
    with served(model, max_waiting_mb=1) as server:
        assert len(silence) < 200_000
        response = post(server, body_of(user(audio_part(silence, "flac"))))
        assert response.status_code == 429 and response.json()["error"]["code"] == "queue_full"
        assert alive(server)


def test_what_is_left_of_a_refused_body_is_not_waited_for_without_end(model, monkeypatch):
    monkeypatch.setattr(http_body, "LINGER_SECS", 0.5)
    monkeypatch.setenv(API_KEY, "secret")
    with served(model) as server:
        with connected(server, half_body(server)) as [sock]:
            answer = dripping(sock)
        assert answer.startswith(b"HTTP/1.1 401") and b"connection: close" in answer
        until(lambda: num_connections(server) == 0)


def test_a_refused_request_leaves_nothing_behind(model):
    """Without the garbage collector's help, which may come much later."""
    large = "x" * 300_000
    not_audio = json.dumps(body_of(user(audio_part(large)))).encode()
    wrong = json.dumps(body_of(user(large), n=2)).encode()
    too_long = json.dumps(body_of(user(large))).encode()
    with served(model, max_body_mb=0.3125) as server:
        refused = {not_audio: 400, wrong: 400, too_long: 400, b"x" * 330_000: 413}
        for body, status in refused.items():
            assert post(server, body).status_code == status
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            for body in [*refused] * 10:
                post(server, body)
            assert tracemalloc.get_traced_memory()[0] < 1.8e6  # of 13 MB
        finally:
            tracemalloc.stop()
            gc.enable()


# ---- heads and connections


def test_2000_connections_without_a_whole_head_are_closed_and_others_served_meanwhile(model):
    allow_files(4000)
    with served(model, header_timeout_secs=3.0, max_batch_size=8, max_queue=8, max_connections=100) as server:
        with connected(server, b"GET /v1/models HTTP/1.1\r\nX-Slow: ", count=2000) as socks:
            until(lambda: num_connections(server) <= 100)
            assert all(alive(server) for _ in range(3))
            answers = [read_all(sock) for sock in socks]  # each ends: by a newer one, or by time
            assert set(answer[:12] for answer in answers) == {b"", b"HTTP/1.1 408"}
        until(lambda: num_connections(server) == 0)
        assert alive(server)


def test_a_head_that_comes_in_drips_is_ended(model):
    with served(model, header_timeout_secs=0.5) as server:
        with connected(server, head(server)[:-2] + b"X-Slow: ") as [sock]:
            assert error_of(dripping(sock)) == (408, "header_timeout")
        with connected(server) as [sock]:
            assert read_all(sock) == b""  # who says nothing is told nothing


def test_a_second_request_that_never_comes_is_not_waited_for(model):
    with served(model, header_timeout_secs=0.5, keep_alive_secs=0.5) as server:
        whole = head(server, method="GET", path="/health")
        with connected(server, whole) as [sock]:
            assert read_all(sock).startswith(b"HTTP/1.1 200")
        with connected(server, whole + b"GET /he") as [sock]:
            assert dripping(sock).startswith(b"HTTP/1.1 200")


def test_the_client_that_was_silent_longest_makes_room(model):
    with served(model, max_batch_size=1, max_queue=1, max_connections=3) as server:
        with ExitStack() as stack:
            old, *newer = [stack.enter_context(connected(server, b"GET /"))[0] for _ in range(3)]
            until(lambda: num_connections(server) == 3)
            assert alive(server)
            assert read_all(old) == b""
            for sock in newer:
                sock.sendall(b"health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                assert read_all(sock).startswith(b"HTTP/1.1 200")


# ---- clients that do not read


def silent_reader(server, stack, **more):
    """A connection with small buffers whose client asks for a long stream and never reads it."""
    [sock] = stack.enter_context(connected(server, receive_buffer=4096))
    until(lambda: num_connections(server) == 1)
    [wire] = server.server_state.connections
    wire.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    body = json.dumps(body_of(**LONG, stream=True)).encode()
    wire.transport.set_write_buffer_limits(1024)
    sock.sendall(head(server, f"Content-Length: {len(body)}") + body)
    until(lambda: wire.flow.write_paused)


def test_a_client_that_reads_nothing_is_cut_off(model):
    with served(model, send_timeout_secs=0.5) as server, ExitStack() as stack:
        silent_reader(server, stack)
        until(lambda: num_connections(server) == 0)
        until(lambda: not server.service.calls)
        assert counters(server)['nemo_desta_requests_total{status="499"}'] == 1 and alive(server)


def test_a_client_that_reads_nothing_loses_its_place_when_its_time_is_over(model):
    with served(model, request_timeout_secs=2.0) as server, ExitStack() as stack:
        silent_reader(server, stack)
        until(lambda: not server.service.calls)
        until(lambda: server.service.batcher.num_running == 0)
        assert counters(server)['nemo_desta_requests_total{status="504"}'] == 1 and alive(server)


# ---- text


def test_text_that_cannot_fit_is_refused_without_tokenising_all_of_it(model, monkeypatch):
    tokenised, tokenize = [], PromptBuilder.tokenize
    monkeypatch.setattr(PromptBuilder, "tokenize", lambda self, text: tokenised.append(text) or tokenize(self, text))
    with served(model) as server:
        tokenised.clear()
        response = post(server, body_of(user("word " * 300_000)))
        assert response.status_code == 400 and response.json()["error"]["code"] == "context_length_exceeded"
        assert 0 < sum(map(len, tokenised)) < 200_000
        assert "1500000 characters" in response.json()["error"]["message"]
        assert alive(server)


# ---- logs


@pytest.mark.parametrize("upgrade", [False, True])
def test_a_key_in_the_address_is_never_logged(model, monkeypatch, caplog, upgrade):
    monkeypatch.setenv(API_KEY, "secret-1234")
    more = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13", "sec-websocket-key": "x"}
    with caplog.at_level(logging.DEBUG), served(model) as server:
        for key in ("secret-1234", "secret-4321"):
            url = f"{server.url}/models?api_key={key}&x=1"
            assert httpx.get(url, headers=more if upgrade else {}).status_code == 401
    own = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore", "openai"))]
    logged = "\n".join(f"{record.getMessage()} {record.exc_text or ''}" for record in own)
    assert "secret" not in logged and "api_key" not in logged
    assert '"GET /v1/models HTTP/1.1" 401' in logged


def test_a_failure_is_logged_without_the_request(model, caplog):
    def fails(request, *_):
        raise RuntimeError(f"cannot do with {request}")

    with caplog.at_level(logging.DEBUG), served(model) as server:
        prepare, server.service.parser.prepare = server.service.parser.prepare, fails
        assert post(server, body_of(user("a private matter"))).status_code == 500
        server.service.parser.prepare = prepare
        assert alive(server)
    logged = caplog.text + "".join(record.exc_text or "" for record in caplog.records)
    assert "private" not in logged
    assert "RuntimeError" in logged and "in fails" in logged


# ---- settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_connections": 192}, "above max_batch_size"),
        ({"max_receiving_mb": 63}, "one body of max_body_mb = 64 must fit"),
        ({"body_timeout_secs": 0.0}, "above 0"),
    ],
)
def test_limits_that_contradict_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        ServerSettings(**settings)


def test_more_connections_than_files_are_refused():
    with pytest.raises(ConfigError, match="Lower max_connections"):
        allow_files(1 << 40)
