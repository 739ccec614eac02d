"""The scripted server as a command, and the benchmark that uses it."""

import asyncio
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from benchmarks.recipes_engine import measure
from nemo_desta.testing.openai_server import Faults, ScriptedServer, random_words


def test_command_serves_random_words_until_it_is_ended() -> None:
    command = [sys.executable, "-m", "nemo_desta.testing.openai_server", "--model", "toy", "--words", "3"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])
    try:
        url = server.stdout.readline().strip()
        body = json.dumps({"model": "toy", "prompt": "hi", "max_tokens": 9}).encode()
        answer = json.loads(urllib.request.urlopen(f"{url}/completions", body, timeout=30).read())
    finally:
        server.terminate()
        server.wait(30)
    assert answer["choices"][0] == {"index": 0, "finish_reason": "stop", "text": random_words("hi", 3)}


def test_faults_follow_from_prompt_and_seed_and_not_from_the_order() -> None:
    def spoilt(order: list[int]) -> set[int]:
        with ScriptedServer(lambda prompt: "fine", faults=Faults(http_500=0.3)) as server:
            found = set()
            for i in order:
                body = json.dumps({"model": "scripted", "prompt": f"p{i}", "seed": i}).encode()
                try:
                    urllib.request.urlopen(f"{server.url}/completions", body, timeout=30).read()
                except urllib.error.HTTPError:
                    found.add(i)
            return found

    first = spoilt(list(range(40)))
    assert 4 < len(first) < 24 and spoilt(list(reversed(range(40)))) == first


def test_port_in_use_is_named() -> None:
    with ScriptedServer() as server:
        port = int(server.url.split(":")[2].split("/")[0])
        with pytest.raises(RuntimeError, match=f"did not start on port {port}"):
            ScriptedServer(port=port).__enter__()


def test_benchmark_compares_every_answer_and_counts_the_retries() -> None:
    with ScriptedServer(delay_secs=0.002, faults=Faults(0.05, 0.02, 0.02)) as server:
        result = asyncio.run(measure(server.url, num_requests=200, in_flight=16, delay=0.002))
    assert result["ideal_per_second"] == 7280.0 and 0 < result["share_of_ideal"] < 1
    assert result["stats"]["answers"] == 201 and sum(result["stats"]["retries"].values()) > 5
