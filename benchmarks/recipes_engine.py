"""Throughput of the openai engine, compared with the rate that a slow and faulty server allows.

    python -m benchmarks.recipes_engine [--requests 6000] [--in-flight 64] [--delay 0.1]

A scripted server in its own process answers after 100 ms and spoils 9 % of all calls: 5 % answers 500, 2 % cut
connections, 2 % broken JSON. The ideal is ``in_flight / delay`` calls per second, times the share that succeeds. As in
the recipes, ``engine.concurrency`` rows send requests together. Every answer is compared with the expected one.
"""

import argparse
import asyncio
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from nemo_desta.recipes.engines import OpenAIEngine, Request, SamplingConfig
from nemo_desta.testing.openai_server import random_words

#: Shipped with the package; its chat template renders the prompts.
TOKENIZER = "package:demo/assets/llm_reasoning"
FAULTS = {"http-500": 0.05, "dropped": 0.02, "malformed": 0.02}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--delay", type=float, default=0.1, help="seconds")
    args = parser.parse_args()
    with faulty_server(args.delay) as url:
        print(json.dumps(asyncio.run(measure(url, args.requests, args.in_flight, args.delay)), indent=2))


@contextmanager
def faulty_server(delay: float) -> Iterator[str]:
    """Start the server in its own process; yields its URL."""
    command = [sys.executable, "-m", "nemo_desta.testing.openai_server", "--delay", str(delay)]
    for name, share in FAULTS.items():
        command += [f"--{name}", str(share)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
    finally:
        server.terminate()
        server.wait()


def ideal_rate(in_flight: int, delay: float) -> float:
    """Good answers per second that the server allows."""
    return in_flight / delay * (1 - sum(FAULTS.values()))


async def measure(url: str, num_requests: int, in_flight: int, delay: float) -> dict[str, object]:
    """Answers per second and their share of the ideal."""
    engine = OpenAIEngine(url, "scripted", tokenizer=TOKENIZER, concurrency=in_flight)
    answers = []
    numbers = iter(range(num_requests))

    async def caller() -> None:
        for i in numbers:
            messages = [{"role": "user", "content": f"[00:00-00:02] (Sound: clip {i}, Duration: 2s)\nWhat is heard?"}]
            generation = await engine.generate(Request(messages, SamplingConfig(), seed=i))
            answers.append((i, messages, generation))

    await engine.generate(Request([{"role": "user", "content": "warm-up"}], SamplingConfig(), seed=0))
    gc.freeze()  # the garbage collector need not scan the imported modules again and again
    cpu, start = time.process_time(), time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(engine.concurrency)))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    await engine.close()
    assert sorted(i for i, _, _ in answers) == list(range(num_requests))
    for i, messages, generation in answers:
        right = random_words(engine.prompts.render(messages))
        assert generation.text == right and not generation.truncated, f"request {i}: {generation}"
    ideal = ideal_rate(in_flight, delay)
    return {
        "answers_per_second": round(num_requests / seconds, 1),
        "ideal_per_second": round(ideal, 1),
        "share_of_ideal": round(num_requests / seconds / ideal, 3),
        "cpu_ms_per_answer": round(1000 * cpu / num_requests, 3),
        "load_of_the_machine": f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
        "stats": engine.stats,
    }


if __name__ == "__main__":
    main()
