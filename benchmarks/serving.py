"""Measures the gain from batching: one server is queried by one client, then by many clients at once.

    python -m benchmarks.serving [--clients 64] [--secs 60] [--model <folder>] [--json <file>]

The server (`examples/desta_serve.py` with its defaults) runs in a second process on the same machine, with the given
model, or with the demo's encoders and LLM and a projector of random weights. Every request has a new clip (noise of 1
to 8 s) and a question, and uses greedy decoding. Answers are streamed, so that the first token is timed. Each client
sends its next request when it has its answer.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RATE = 16_000
QUESTIONS = (
    "What do you hear?",
    "Describe the recording in one sentence.",
    "Which language is spoken?",
    "Is there music in it? Explain.",
    "Who speaks, and what is said?",
)


class Answered(NamedTuple):
    """Seconds to the first token and to the end, generated tokens, seconds of audio sent."""

    first_secs: float
    secs: float
    num_tokens: int
    audio_secs: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model folder; the demo's parts by default")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--secs", type=float, default=60.0, help="how long the clients ask; a third of it one by one")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, help="of torch in the server; torch decides by default")
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or demo_model(Path(folder) / "demo")
        with server(model, threads=args.threads) as running:
            result = asyncio.run(measure(running.url, args.clients, args.secs, args.max_tokens))
    result |= {"machine": f"{os.cpu_count()} cores, {platform.machine()}", "clients": args.clients}
    print(table(result))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n")


def demo_model(folder: Path) -> str:
    """The demo's encoders and LLM with a projector of random weights, as a model folder."""
    import torch
    from omegaconf import OmegaConf

    from nemo_desta.demo.run import compose
    from nemo_desta.models.desta import DestaModel

    torch.manual_seed(0)
    DestaModel(OmegaConf.to_container(compose("demo", []), resolve=True)["model"]).save_pretrained(folder)
    return str(folder)


class Running(NamedTuple):
    """A server in its own process. ``log``: the file of its output."""

    url: str
    pid: int
    log: Path


@contextmanager
def server(
    model: str, settings: Sequence[str] = (), *, threads: int | None = None, key: str | None = None
) -> Iterator[Running]:
    """Runs `examples/desta_serve.py` with ``settings`` (``name=value``) and an API key until the context ends."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    if key:
        environment["NEMO_DESTA_API_KEY"] = key
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w+") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "examples" / "desta_serve.py"), f"model={model}", "port=0", *settings],
            cwd=folder,
            env=environment,
            stdout=log,  # a file, because a full pipe would block the server
            stderr=subprocess.STDOUT,
        )
        try:
            yield Running(_url(process, Path(log.name)), process.pid, Path(log.name))
        finally:
            process.terminate()
            process.wait(300)


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    """The URL that a starting server prints to its log."""
    while process.poll() is None:
        if found := re.search(r" is served at (\S+)\n", log.read_text()):
            return found[1]
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start:\n{log.read_text()[-2000:]}")


async def measure(url: str, num_clients: int, secs: float, max_tokens: int) -> dict[str, Any]:
    """One client for a third of the time, then all of them."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        asker = Asker(session, url, max_tokens)
        async with session.get(f"{url}/models") as response:
            asker.name = (await response.json())["data"][0]["id"]
        await asker.ask(0)
        alone = await asker.run(1, secs / 3)
        together = await asker.run(num_clients, secs)
    ratio = together["requests_per_sec"] / alone["requests_per_sec"]
    return {"alone": alone, "together": together, "ratio": round(ratio, 2), "errors": asker.errors}


class Asker:
    """Clients of one server. ``errors``: counts of failed requests by message."""

    def __init__(self, session: Any, url: str, max_tokens: int) -> None:
        self.session = session
        self.url = url
        self.max_tokens = max_tokens
        self.name = ""
        self.errors: dict[str, int] = {}
        self.count = 0

    async def run(self, num_clients: int, secs: float) -> dict[str, Any]:
        """Figures of ``num_clients`` that send requests for ``secs``; later answers are awaited and counted."""
        begun = time.perf_counter()

        async def client() -> list[Answered]:
            answers = []
            while time.perf_counter() - begun < secs:
                self.count += 1
                try:
                    answers.append(await self.ask(self.count))
                except Exception as error:
                    words = f"{type(error).__name__}: {error}"[:200]
                    self.errors[words] = self.errors.get(words, 0) + 1
            return answers

        answers = sum(await asyncio.gather(*(client() for _ in range(num_clients))), [])
        return summary(answers, time.perf_counter() - begun)

    async def ask(self, number: int) -> Answered:
        """Sends one request; ``number`` determines its content."""
        data, audio_secs = await asyncio.to_thread(clip, number)
        text = {"type": "text", "text": QUESTIONS[number % len(QUESTIONS)]}
        audio = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        body = {"model": self.name, "messages": [{"role": "user", "content": [audio, text]}], "temperature": 0}
        body |= {"max_tokens": self.max_tokens, "stream": True, "stream_options": {"include_usage": True}}
        begun, first, usage = time.perf_counter(), None, None
        async with self.session.post(f"{self.url}/chat/completions", json=body) as response:
            if response.status != 200:
                raise RuntimeError(f"{response.status} {await response.text()}")
            async for line in response.content:
                if line.startswith(b"data: {"):
                    first = first or time.perf_counter()
                    chunk = json.loads(line[6:])
                    if "error" in chunk:
                        raise RuntimeError(chunk["error"]["message"])
                    usage = chunk.get("usage") or usage
        if first is None or usage is None:
            raise RuntimeError("the stream ended early")
        ended = time.perf_counter()
        return Answered(first - begun, ended - begun, usage["completion_tokens"], audio_secs)


def clip(number: int) -> tuple[str, float]:
    """A wav file of noise in base64, and its seconds."""
    import numpy as np
    import soundfile

    rng = np.random.default_rng(number)
    samples = (0.1 * rng.standard_normal(int(rng.uniform(1, 8) * RATE))).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV", subtype="PCM_16")
    return base64.b64encode(file.getvalue()).decode(), len(samples) / RATE


def summary(answers: list[Answered], secs: float) -> dict[str, Any]:
    """Rates over the whole time, quantiles over the answers."""
    if not answers:
        return {"answers": 0, "requests_per_sec": 0.0}
    whole, first = sorted(a.secs for a in answers), sorted(a.first_secs for a in answers)

    def quantile(values: list[float], q: float) -> float:
        return round(values[min(len(values) - 1, int(q * len(values)))], 3)

    return {
        "answers": len(answers),
        "secs": round(secs, 1),
        "requests_per_sec": round(len(answers) / secs, 3),
        "tokens_per_sec": round(sum(a.num_tokens for a in answers) / secs, 1),
        "audio_secs_per_sec": round(sum(a.audio_secs for a in answers) / secs, 1),
        "tokens_per_answer": round(statistics.mean(a.num_tokens for a in answers), 1),
        "p50_secs": quantile(whole, 0.5),
        "p95_secs": quantile(whole, 0.95),
        "p50_first_token_secs": quantile(first, 0.5),
        "p95_first_token_secs": quantile(first, 0.95),
    }


def table(result: dict[str, Any]) -> str:
    """The result as a text table."""
    lines = [f"{'':>24}{'one by one':>14}{str(result['clients']) + ' clients':>14}"]
    for name in result["together"]:
        lines.append(f"{name:>24}{result['alone'].get(name, '-'):>14}{result['together'][name]:>14}")
    errors = result["errors"] or "none"
    return "\n".join([*lines, f"throughput: {result['ratio']} x; errors: {errors}; {result['machine']}"])


if __name__ == "__main__":
    main()
