"""A real server in a thread of the test's process, and what tests send to it."""

import base64
import io
import threading
import time
from contextlib import contextmanager

import httpx
import numpy as np
import soundfile
import torch
from openai import OpenAI

from nemo_desta.models.desta import DestaModel
from nemo_desta.serving.app import create_app
from nemo_desta.serving.server import Server, listen
from nemo_desta.serving.settings import ServerSettings
from nemo_desta.testing.models import tiny_config

NAME = "tiny"
RATE = 16_000


def tiny_model(folder, **llm):
    """A model with random weights that says many different things and ends its turn now and then."""
    torch.manual_seed(1)
    model = DestaModel(tiny_config(folder, **{"kind": "llama"} | llm)).eval()
    with torch.no_grad():  # weights of a size that lets the whole prompt tell in what is said
        for weight in model.llm.parameters():
            weight.mul_(8 if weight.ndim == 2 else 1)
    return model


@contextmanager
def served(model, *, make_engine=None, **settings):
    """A `Server` in a thread; ended with everything it holds."""
    settings = ServerSettings(port=0, **{"max_new_tokens": 12, **settings})
    server = Server(create_app(model, settings, name=NAME, make_engine=make_engine), settings)
    with listen(settings) as sock:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        try:
            assert server.ready.wait(60), "the server did not start"
            yield server
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


def client(server, key="none", **options):
    return OpenAI(base_url=server.url, api_key=key, **{"max_retries": 0, "timeout": 60, **options})


def noise(secs, seed=0, rate=RATE):
    return (0.1 * np.random.default_rng(seed).standard_normal(int(secs * rate))).astype(np.float32)


def encoded(samples, *, rate=RATE, format="wav", subtype=None):
    """A file in base64."""
    file = io.BytesIO()
    container, default = {
        "wav": ("WAV", "FLOAT"),
        "flac": ("FLAC", "PCM_16"),
        "mp3": ("MP3", None),
        "ogg": ("OGG", "VORBIS"),
        "opus": ("OGG", "OPUS"),
    }[format]
    soundfile.write(file, samples, rate, format=container, subtype=subtype or default)
    return base64.b64encode(file.getvalue()).decode()


def audio_part(data, format="wav", **more):
    return {"type": "input_audio", "input_audio": {"data": data, "format": format, **more}}


def text_part(text):
    return {"type": "text", "text": text}


def user(*parts):
    return {"role": "user", "content": parts[0] if len(parts) == 1 and isinstance(parts[0], str) else list(parts)}


def post(server, body, **headers):
    """A raw request, for bodies that the official client would never send."""
    headers = {"content-type": "application/json", **headers}
    content = {"content": body} if isinstance(body, bytes) else {"json": body}
    return httpx.post(f"{server.url}/chat/completions", headers=headers, timeout=60, **content)


def body_of(*messages, **more):
    return {"model": NAME, "messages": list(messages) or [user("Hello")], "max_tokens": 4, **more}


def alive(server):
    """Whether the server still answers."""
    answer = client(server).chat.completions.create(model=NAME, messages=[user("Hello")], max_tokens=2)
    return answer.usage.completion_tokens >= 1


def until(true, secs=10.0):
    end = time.monotonic() + secs
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def counters(server):
    """The metrics by name (with labels as Prometheus writes them)."""
    text = httpx.get(server.url.replace("/v1", "/metrics")).text
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}
