"""What the server refuses: by name, with the status and body of OpenAI's API - and it lives on."""

import base64
import json
import logging
import socket
import time
import tracemalloc

import httpx
import numpy as np
import pytest
from openai import AuthenticationError, BadRequestError, NotFoundError

from nemo_desta.config import parse
from nemo_desta.errors import ConfigError
from nemo_desta.serving.app import API_KEY, create_app
from nemo_desta.serving.settings import ServerSettings
from tests.serving.serving_tools import (
    NAME,
    alive,
    audio_part,
    body_of,
    client,
    encoded,
    noise,
    post,
    served,
    user,
)

LIMITS = {"max_body_mb": 1.0, "max_audio_secs": 5.0, "max_audios": 3, "max_text_chars": 20_000}


@pytest.fixture(scope="module")
def server(model):
    with served(model, **LIMITS) as server:
        yield server


WAV = encoded(noise(0.5))
RIFF = base64.b64decode(WAV)


def b64(content):
    return base64.b64encode(content).decode()


def lying_flac():
    """Its header says two samples to the 35, its body has half a second."""
    content = bytearray(base64.b64decode(encoded(noise(0.5), format="flac")))
    content[21] |= 0x07
    return b64(bytes(content))


AUDIO = "messages[0].content[0].input_audio.data"
#: Name -> message or other change of a good body, status, param, code.
BAD = {
    "bad base64": ({"messages": [user(audio_part("%%%"))]}, 400, AUDIO, "invalid_base64"),
    "a data url of text": ({"messages": [user(audio_part("data:text/plain,hello"))]}, 400, AUDIO, "invalid_base64"),
    "a path": ({"messages": [user(audio_part("/etc/passwd"))]}, 400, AUDIO, "invalid_audio"),
    "a file's address": ({"messages": [user(audio_part("file://server/a.wav"))]}, 400, AUDIO, "invalid_base64"),
    "half a wav": ({"messages": [user(audio_part(b64(RIFF[: len(RIFF) // 2])))]}, 400, AUDIO, "cut_audio"),
    "a wav of 1 Hz": ({"messages": [user(audio_part(encoded(noise(0.1), rate=1)))]}, 400, AUDIO, "rate_audio"),
    "absurdly loud": ({"messages": [user(audio_part(encoded(1e18 * noise(0.1))))]}, 400, AUDIO, "level_audio"),
    "a web address": ({"messages": [user(audio_part("https://example.org/a.wav"))]}, 400, AUDIO, "invalid_base64"),
    "no bytes": ({"messages": [user(audio_part(""))]}, 400, AUDIO, "empty_audio"),
    "a wav of no samples": ({"messages": [user(audio_part(encoded(noise(0))))]}, 400, AUDIO, "empty_audio"),
    "a wav's head alone": ({"messages": [user(audio_part(b64(RIFF[:20])))]}, 400, AUDIO, "invalid_audio"),
    "corrupt audio": ({"messages": [user(audio_part(b64(RIFF[:12] + b"?" * 500)))]}, 400, AUDIO, "invalid_audio"),
    "a corrupt mp3": (
        {"messages": [user(audio_part(b64(b"\xff\xfb" + b"?" * 500), "mp3"))]},
        400,
        AUDIO,
        "invalid_audio",
    ),
    "a playlist": (
        {"messages": [user(audio_part(b64(b"#EXTM3U\nfile:" + b"///secret\n")))]},
        400,
        AUDIO,
        "invalid_audio",
    ),
    "infinite samples": (
        {"messages": [user(audio_part(encoded(np.full(99, np.inf, np.float32))))]},
        400,
        AUDIO,
        "corrupt_audio",
    ),
    "flac called wav": (
        {"messages": [user(audio_part(encoded(noise(1), format="flac")))]},
        400,
        AUDIO,
        "invalid_audio",
    ),
    "unknown format": (
        {"messages": [user(audio_part(WAV, "aiff"))]},
        400,
        "messages[0].content[0].input_audio.format",
        "unknown_format",
    ),
    "audio too long": (
        {"messages": [user(audio_part(encoded(noise(5.1), format="flac"), "flac"))]},
        413,
        AUDIO,
        "audio_too_long",
    ),
    "too long together": (
        {"messages": [user(audio_part(WAV), audio_part(encoded(noise(4.6), format="flac"), "flac"))]},
        413,
        "messages[0].content[1].input_audio.data",
        "audio_too_long",
    ),
    "hundreds of channels": (
        {"messages": [user(audio_part(encoded(np.zeros((3000, 500)), subtype="PCM_U8")))]},
        413,
        None,
        None,
    ),
    "too many audios": ({"messages": [user(*[audio_part(WAV)] * 4)]}, 413, "messages", "too_many_audios"),
    "too much text": ({"messages": [user("x" * 20_001)]}, 413, "messages", "text_too_long"),
    "too much transcript": (
        {"messages": [user(audio_part(WAV, transcript="x" * 20_001))]},
        413,
        "messages",
        "text_too_long",
    ),
    "too long for the LLM": ({"messages": [user("y z " * 1200)]}, 400, "messages", "context_length_exceeded"),
    "wrong role": ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages[0].role", "invalid_value"),
    "a tool's turn": ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].role", "invalid_value"),
    "audio of an assistant": (
        {"messages": [{"role": "assistant", "content": [audio_part(WAV)]}]},
        400,
        "messages[0].content[0]",
        None,
    ),
    "no content": ({"messages": [{"role": "user"}]}, 400, "messages[0].content", "missing_required_parameter"),
    "content of null": (
        {"messages": [{"role": "user", "content": None}]},
        400,
        "messages[0].content",
        "missing_required_parameter",
    ),
    "content of a number": (
        {"messages": [{"role": "user", "content": 5}]},
        400,
        "messages[0].content",
        "invalid_value",
    ),
    "half a surrogate pair": (
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
        400,
        None,
        "invalid_json",
    ),
    "a picture": (
        {"messages": [user({"type": "image_url", "image_url": {"url": "x"}})]},
        400,
        "messages[0].content[0].type",
        "invalid_value",
    ),
    "a part without type": ({"messages": [user({"text": "x"})]}, 400, "messages[0].content[0]", "invalid_value"),
    "an unknown field in audio": (
        {"messages": [user(audio_part(WAV, url="x"))]},
        400,
        "messages[0].content[0].input_audio.url",
        "unknown_parameter",
    ),
    "no messages": ({"messages": []}, 400, "messages", "invalid_value"),
    "unknown model": ({"model": "gpt"}, 404, "model", "model_not_found"),
    "no model": ({"model": None}, 400, "model", "missing_required_parameter"),
    "two answers": ({"n": 2}, 400, "n", "unsupported_parameter"),
    "tools": ({"tools": [{"type": "function"}]}, 400, "tools", "unsupported_parameter"),
    "json only": ({"response_format": {"type": "json_object"}}, 400, "response_format", "unsupported_parameter"),
    "logprobs": ({"logprobs": True}, 400, "logprobs", "unsupported_parameter"),
    "a penalty": ({"frequency_penalty": 0.5}, 400, "frequency_penalty", "unsupported_parameter"),
    "a switch for a number": ({"n": True}, 400, "n", "unsupported_parameter"),
    "a penalty that is off": ({"frequency_penalty": False}, 400, "frequency_penalty", "unsupported_parameter"),
    "tokens and a half": ({"max_tokens": 1.5}, 400, "max_tokens", "invalid_value"),
    "obfuscation": (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        400,
        "stream_options.include_obfuscation",
        "invalid_value",
    ),
    "a name with a space": ({"messages": [{**user("x"), "name": "A B"}]}, 400, "messages[0].name", "invalid_value"),
    "a long name": ({"messages": [{**user("x"), "name": "a" * 65}]}, 400, "messages[0].name", "invalid_value"),
    "a name of a number": ({"messages": [{**user("x"), "name": 5}]}, 400, "messages[0].name", "invalid_value"),
    "calls of tools": (
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]},
        400,
        "messages[0].tool_calls",
        "unknown_parameter",
    ),
    "a typing error": ({"temprature": 1}, 400, "temprature", "unknown_parameter"),
    "hot": ({"temperature": 2.1}, 400, "temperature", "invalid_value"),
    "nearly zero": ({"temperature": 1e-40}, 400, "temperature", None),
    "a word for a number": ({"temperature": "1"}, 400, "temperature", "invalid_value"),
    "no tokens": ({"max_tokens": 0}, 400, "max_tokens", "invalid_value"),
    "two limits": ({"max_tokens": 5, "max_completion_tokens": 6}, 400, "max_tokens", None),
    "an endless seed": ({"seed": 1 << 70}, 400, "seed", "invalid_value"),
    "an empty stop": ({"stop": [""]}, 400, "stop", None),
    "a stop of numbers": ({"stop": [1]}, 400, "stop", "invalid_value"),
    "options without stream": ({"stream_options": {"include_usage": True}}, 400, "stream_options", None),
    "Whisper's transcript": ({"transcript": "whisper"}, 400, "transcript", "unsupported_value"),
    "an unknown transcript": ({"transcript": "mine"}, 400, "transcript", "invalid_value"),
    "no JSON": (b"{", 400, None, "invalid_json"),
    "nothing": (b"", 400, None, "invalid_json"),
    "a list": (b"[]", 400, None, "invalid_json"),
    "other bytes": (b"\xff\xfe\x00\x01", 400, None, "invalid_json"),
    "deep brackets": (b"[" * 100_000, 400, None, "invalid_json"),
    "not a number": (b'{"temperature": NaN}', 400, None, "invalid_json"),
    "a number of 9,999 digits": (b'{"seed": ' + b"9" * 9999 + b"}", 400, None, "invalid_json"),
    "a large body": (b"x" * (1 << 20 | 1), 413, None, "body_too_large"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_by_name(server, name):
    change, status, param, code = BAD[name]
    response = post(server, change if isinstance(change, bytes) else {**body_of(), **change})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert param is None or error["param"] == param
    assert code is None or error["code"] == code
    assert 10 < len(error["message"]) < 600


def test_the_server_lives_after_all_of_them(server):
    assert alive(server) and server.service.batcher.num_failures == 0
    assert server.service.num_waiting == 0


def test_a_header_that_lies_about_its_length_costs_nothing(server):
    tracemalloc.start()
    response = post(server, body_of(user(audio_part(lying_flac(), "flac"))))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert response.status_code == 400 and response.json()["error"]["code"] == "cut_audio"
    assert peak < 50e6


def test_a_private_character_for_every_mark_is_no_crash(server):
    response = post(server, body_of(user("".join(map(chr, range(0xE000, 0xF900))))))
    assert response.status_code == 400 and "private-use" in response.json()["error"]["message"]
    assert alive(server)


def test_the_official_client_raises_its_own_errors(server):
    chat = client(server).chat.completions
    with pytest.raises(NotFoundError, match="served here: tiny"):
        chat.create(model="other", messages=[user("x")])
    with pytest.raises(BadRequestError) as caught:
        chat.create(model=NAME, messages=[user("x")], n=3)
    assert caught.value.param == "n" and caught.value.code == "unsupported_parameter"


def test_200_megabytes_are_refused_while_they_come_and_never_held(server):
    sent = 0

    def body():
        nonlocal sent
        for _ in range(200):
            sent += 1 << 20
            yield b"x" * (1 << 20)

    for headers in ({}, {"content-length": str(200 << 20)}):
        sent = 0
        tracemalloc.start()  # the server runs in this process
        response = httpx.post(
            f"{server.url}/chat/completions",
            content=body(),
            headers={"content-type": "application/json", **headers},
            timeout=60,
        )
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert response.status_code == 413 and response.json()["error"]["code"] == "body_too_large"
        assert peak < 20e6, f"{peak / 1e6:.0f} MB for a limit of 1 MB"
    assert alive(server)


def test_a_client_that_waits_for_our_go_ahead_is_refused_before_it_sends(server):
    host, port = server.url.split("/")[2].split(":")
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {200 << 20}\r\nExpect: 100-continue\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=30) as sock:
        begun = time.monotonic()
        sock.sendall(head.encode())
        assert sock.recv(100).startswith(b"HTTP/1.1 413")
        assert time.monotonic() - begun < 5


def test_foreign_pages_get_nothing(server):
    """A web page may post plain text anywhere without asking, and point a name of its own to 127.0.0.1."""
    plain = httpx.post(f"{server.url}/chat/completions", content=json.dumps(body_of()))
    assert plain.status_code == 415
    rebound = httpx.get(f"{server.url}/models", headers={"host": "evil.example:80"})
    assert rebound.status_code == 403 and "allowed_hosts" in rebound.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/chat/completions", 405), ("GET", "/v1/other", 404), ("GET", "/v1/models/other", 404)],
)
def test_wrong_addresses_are_refused_in_the_same_words(server, method, path, status):
    response = httpx.request(method, server.url.removesuffix("/v1") + path)
    assert response.status_code == status and response.json()["error"]["message"]


def test_health_says_ready(server):
    response = httpx.get(server.url.replace("/v1", "/health"))
    assert response.status_code == 200 and response.json() == {"status": "ready"}


def test_a_key_is_asked_for_and_never_logged(model, monkeypatch, caplog):
    monkeypatch.setenv(API_KEY, "schlüssel-1234")
    with caplog.at_level(logging.DEBUG), served(model) as server:
        url = f"{server.url}/chat/completions"
        good = {"authorization": "Bearer schlüssel-1234".encode()}
        assert httpx.post(url, json=body_of(), headers=good).status_code == 200
        for headers in (
            {},
            {"authorization": "Bearer schl"},
            {"authorization": b"Bearer \xff\xff"},
            {"authorization": "x"},
        ):
            response = httpx.post(url, json=body_of(), headers=headers)
            assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"
            assert httpx.get(f"{server.url}/models", headers=headers).status_code == 401
        with pytest.raises(AuthenticationError):
            client(server, "wrong").chat.completions.create(model=NAME, messages=[user("x")])
        assert httpx.get(server.url.replace("/v1", "/health")).status_code == 200
    logged = "".join(
        record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "openai", "httpcore"))
    )
    assert "1234" not in logged and logged


def test_an_empty_key_is_a_mistake(model, monkeypatch):
    monkeypatch.setenv(API_KEY, " ")
    with pytest.raises(ConfigError, match="set but empty"):
        create_app(model, ServerSettings())


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"max_quue": 1}, "Did you mean 'max_queue'"), ({"max_queue": 0}, "above 0"), ({"port": 70_000}, "65535")],
)
def test_wrong_settings_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        parse(ServerSettings, settings, "serve")
