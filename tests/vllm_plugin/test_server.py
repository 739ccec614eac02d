"""``desta serve engine=vllm``: vLLM's own API server with a model folder, over HTTP."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from tests.vllm_plugin.conftest import clip, wav, whole

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

START_SECS = 900
STOP_SECS = 120
KEY = "a key"


class Server:
    """The process, and requests to it."""

    def __init__(self, folder, log):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "nemo_desta", "serve", f"model={folder}", f"port={port}", "name=desta"]
        command += ["engine=vllm", "vllm={enforce_eager: true}", "max_context=2048", "max_batch_size=4"]
        command += ["max_audios=8", "max_audio_secs=100", "max_body_mb=50"]
        environment = {
            **os.environ,
            "NEMO_DESTA_API_KEY": KEY,
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }
        self.log, self.address = log, f"http://127.0.0.1:{port}"
        with log.open("w") as out:
            self.process = subprocess.Popen(
                command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self):
        for _ in range(START_SECS):
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            if f"desta is served at {self.address}/v1" in self.log.read_text():
                return
            time.sleep(1)
        raise AssertionError(f"not ready after {START_SECS} s: {self.log.read_text()[-4000:]}")

    def __call__(self, path, data=None, **headers):
        """Status and answer."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}", **headers}
        request = urllib.request.Request(self.address + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=300) as reply:
                return reply.status, json.loads(reply.read() or "null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())


@pytest.fixture(scope="module")
def server(place):
    server = Server(place.folder, place.path / "server.log")
    try:
        server.wait()
        yield server
    finally:
        if server.process.poll() is None:
            os.killpg(server.process.pid, signal.SIGKILL)
            server.process.wait()


@pytest.fixture(scope="module")
def post(server):
    """(body) -> status and answer of /v1/chat/completions."""

    def send(body, **headers):
        body = {"model": "desta", "temperature": 0, "max_tokens": 12, **body}
        return server("/v1/chat/completions", json.dumps(body).encode(), **headers)

    return send


@pytest.fixture(scope="module")
def chat(theirs):
    """(our messages) -> the text that transformers' class answers, and the prompt's length."""

    def run(messages):
        processor, inputs, ids = theirs(messages, 12)
        return whole(processor.batch_decode(ids, skip_special_tokens=True)[0]), inputs["input_ids"].shape[1]

    return run


def said(reply):
    return whole(reply["choices"][0]["message"]["content"])


def encoded(samples):
    return base64.b64encode(wav(samples)).decode()


def test_two_clips_are_answered_inline_and_as_data_uri(post, chat):
    first, second = clip(1.2, 1), clip(3.1, 2)
    inline = [{"type": "input_audio", "input_audio": {"data": encoded(c), "format": "wav"}} for c in (first, second)]
    question = {"type": "text", "text": "Which is louder?"}
    status, reply = post({"messages": [{"role": "user", "content": [*inline, question]}]})
    ours = [{"type": "audio", "audio": c} for c in (first, second)]
    text, num_prompt = chat([{"role": "user", "content": [*ours, question]}])
    assert (status, said(reply)) == (200, text)
    assert reply["usage"]["prompt_tokens"] == num_prompt

    by_url = {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{encoded(first)}"}}
    status, reply = post({"messages": [{"role": "user", "content": [by_url, inline[1], question]}]})
    assert (status, said(reply)) == (200, text)
    assert reply["usage"]["prompt_tokens"] == num_prompt


def inline(secs, seed=0):
    return {"type": "input_audio", "input_audio": {"data": encoded(clip(secs, seed)), "format": "wav"}}


def check_alive(post, chat):
    messages = [{"role": "user", "content": "Hello"}]
    status, reply = post({"messages": messages})
    assert (status, said(reply)) == (200, chat(messages)[0])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("What is <|AUDIO|>?", "tag"),
        ([inline(95.0, i) for i in range(6)], "2048"),
        ([inline(101.0)], "the clip has 101.0 s, the limit is 100.0 s"),
        ([inline(0.5, i) for i in range(9)], "8 audio"),
        ([{"type": "audio_url", "audio_url": {"url": "http://127.0.0.1:9/a.wav"}}], "none"),
    ],
    ids=["a tag", "too long in all", "a long clip", "many clips", "another server"],
)
def test_a_request_that_cannot_be_answered_is_refused_and_the_server_still_answers(post, chat, content, words):
    status, reply = post({"messages": [{"role": "user", "content": content}]})
    assert 400 <= status < 500 and words in reply["error"]["message"], (status, reply)
    check_alive(post, chat)


def test_every_address_but_health_needs_the_key(server):
    for path in ("/v1/models", "/v1/chat/completions", "/invocations", "/tokenize"):
        status, reply = server(path, Authorization="Bearer wrong")
        assert (status, reply["error"]["code"]) == (401, "invalid_api_key"), path
    assert server("/health", Authorization="")[0] == 200
    status, reply = server("/v1/models")
    assert (status, reply["data"][0]["id"]) == (200, "desta")


def test_a_body_beyond_the_limit_and_a_foreign_host_are_refused(server, post, chat):
    status, reply = server("/v1/chat/completions", b" " * (51 * 2**20))
    assert (status, reply["error"]["code"]) == (413, "body_too_large")
    status, reply = server("/v1/models", Host="example.org")
    assert (status, reply["error"]["code"]) == (403, "unknown_host")
    check_alive(post, chat)


def test_streams_equal_whole_answers(server, post):
    body = {"model": "desta", "temperature": 0, "max_tokens": 12, "stream": True}
    body["messages"] = [{"role": "user", "content": [inline(1.0, 5), {"type": "text", "text": "What?"}]}]
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    address = f"{server.address}/v1/chat/completions"
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=300) as reply:
        events = [line[6:] for line in reply.read().decode().splitlines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    pieces = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events]
    assert whole("".join(pieces)) == said(post({**body, "stream": False})[1])


def test_ctrl_c_ends_the_server(server):
    """The last test of this file. A terminal sends the signal to all processes of the server."""
    os.killpg(server.process.pid, signal.SIGINT)
    assert server.process.wait(STOP_SECS) == 0, server.log.read_text()[-4000:]
    with pytest.raises(OSError):
        server("/health")
