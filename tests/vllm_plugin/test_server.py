"""vLLM's own API server with a model folder, over HTTP."""

import base64
import json
import os
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


@pytest.fixture(scope="module")
def post(place):
    """(body) -> status and answer of /v1/chat/completions."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(place.folder)]
    command += ["--served-model-name", "desta", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--enforce-eager", "--max-model-len", "2048", "--max-num-seqs", "4"]
    command += ["--limit-mm-per-prompt", json.dumps({"audio": {"count": 8, "length": 100 * 16_000}})]
    environment = {
        **os.environ,
        "VLLM_PLUGINS": "nemo_desta",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    log = place.path / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(START_SECS):
            assert server.poll() is None, log.read_text()[-4000:]
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        else:
            raise AssertionError(f"not ready after {START_SECS} s: {log.read_text()[-4000:]}")

        def send(body):
            body = {"model": "desta", "temperature": 0, "max_tokens": 12, **body}
            request = urllib.request.Request(
                f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            try:
                with urllib.request.urlopen(request, timeout=300) as reply:
                    return reply.status, json.load(reply)
            except urllib.error.HTTPError as error:
                return error.code, json.load(error)

        yield send
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()


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


def test_two_clips_inline_and_one_as_data_uri_are_answered(post, chat):
    first, second = clip(1.2, 1), clip(3.1, 2)
    inline = [{"type": "input_audio", "input_audio": {"data": encoded(c), "format": "wav"}} for c in (first, second)]
    question = {"type": "text", "text": "Which is louder?"}
    status, reply = post({"messages": [{"role": "user", "content": [*inline, question]}]})
    ours = [{"type": "audio", "audio": c} for c in (first, second)]
    text, num_prompt = chat([{"role": "user", "content": [*ours, question]}])
    assert (status, said(reply)) == (200, text)
    assert reply["usage"]["prompt_tokens"] == num_prompt

    by_url = {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{encoded(first)}"}}
    status, reply = post({"messages": [{"role": "user", "content": [by_url, question]}]})
    text, num_prompt = chat([{"role": "user", "content": [ours[0], question]}])
    assert (status, said(reply)) == (200, text)
    assert reply["usage"]["prompt_tokens"] == num_prompt


def test_requests_that_cannot_be_answered_are_400_and_the_server_goes_on(post, chat):
    long = [
        {"type": "input_audio", "input_audio": {"data": encoded(clip(95.0, i)), "format": "wav"}} for i in range(6)
    ]
    for content in ("What is <|AUDIO|>?", long):
        status, reply = post({"messages": [{"role": "user", "content": content}]})
        assert status == 400, reply
    status, reply = post({"messages": [{"role": "user", "content": "Hello"}]})
    assert (status, said(reply)) == (
        200,
        chat([{"role": "user", "content": "Hello"}])[0],
    )
