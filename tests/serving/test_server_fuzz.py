"""Random requests and random audio break nothing: the server answers each or refuses it, and lives on."""

import base64
import json
import random

import httpx
import pytest

from tests.serving.serving_tools import alive, audio_part, body_of, encoded, noise, served, text_part, user

WAV = encoded(noise(0.5))


@pytest.fixture(scope="module")
def server(model):
    with served(model, max_body_mb=1.0, max_audio_secs=5.0, max_audios=3, max_text_chars=20_000) as server:
        yield server


def mutated(rng, value, depth=0):
    """A request with something changed at random somewhere inside."""
    strange = [
        None,
        True,
        -1,
        0,
        1e308,
        10**25,
        "",
        "\ud800",
        "\x00",
        "x" * 300,
        [],
        {},
        [[]],
        {"a": 1},
        "<|AUDIO|>",
        WAV[:99],
    ]
    if depth and rng.random() < 0.3:
        return rng.choice(strange)
    if isinstance(value, dict) and value:
        key = rng.choice(sorted(value))
        if rng.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        if rng.random() < 0.15:
            return {**value, rng.choice(["audios", "role", "name", "type", "\ud800"]): rng.choice(strange)}
        return {**value, key: mutated(rng, value[key], depth + 1)}
    if isinstance(value, list) and value:
        place = rng.randrange(len(value))
        return [*value[:place], mutated(rng, value[place], depth + 1), *value[place + (rng.random() < 0.9) :]]
    return rng.choice(strange)


def test_no_random_request_breaks_anything(server):
    rng = random.Random(6)
    message = user(audio_part(WAV, transcript="a"), text_part("What?"))
    good = body_of(
        {"role": "system", "content": "Be brief."}, message, {"role": "assistant", "content": "x"}, user("y")
    )
    good |= {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 1, "stop": ["x"], "stream": False}
    good |= {"repetition_penalty": 1.1, "max_thinking_tokens": 3, "transcript": "given", "metadata": {"a": "b"}}
    statuses = set()
    with httpx.Client() as http:
        for _ in range(120):
            body = json.dumps(mutated(rng, good)).encode()
            for _ in range(rng.choice([0, 0, 0, 3])):  # and broken bytes
                at = rng.randrange(len(body))
                body = body[:at] + bytes([rng.randrange(256)]) + body[at + 1 :]
            response = http.post(
                f"{server.url}/chat/completions",
                content=body,
                headers={"content-type": "application/json"},
                timeout=60,
            )
            statuses.add(response.status_code)
            assert response.status_code in (200, 400, 404, 413), (body[:2000], response.text)
            if response.headers["content-type"].startswith("application/json"):
                assert ("error" in response.json()) == (response.status_code != 200)
    assert {200, 400} <= statuses
    assert alive(server) and server.service.batcher.num_failures == 0


def test_no_random_audio_breaks_anything(server):
    rng = random.Random(7)
    files = [base64.b64decode(encoded(noise(0.3), format=name)) for name in ("wav", "flac", "mp3", "ogg", "opus")]
    with httpx.Client() as http:
        for i in range(60):
            content = bytearray(files[i % 5])
            for _ in range(rng.choice([1, 5, 50])):
                content[rng.randrange(rng.choice([60, len(content)]))] = rng.randrange(256)
            content = bytes(content[: rng.choice([len(content), rng.randrange(1, len(content))])])
            name = ("wav", "flac", "mp3", "ogg", "opus")[i % 5]
            response = http.post(
                f"{server.url}/chat/completions",
                json=body_of(user(audio_part(base64.b64encode(content).decode(), name)), max_tokens=1),
                timeout=60,
            )
            assert response.status_code in (200, 400, 413), response.text
    assert alive(server) and server.service.batcher.num_failures == 0
