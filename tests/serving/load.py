"""Many clients of one server for a while, a fifth of them hostile, and how the server's memory goes.

    python -m tests.serving.load [--secs 600] [--clients 64] [--json <file>] [setting=value ...]

The server (`examples/desta_serve.py` with the demo's encoders and LLM) runs in a process of its own. Good clients ask
as in `benchmarks.serving`: a new clip with every request, the answer as a stream. Hostile ones repeat one thing each.
"""

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.serving import Asker, Running, demo_model, server

KEY = "a-key-of-the-load-test"
#: One of so many clients is hostile.
HOSTILE = 5
#: Memory is read so often.
READ_SECS = 1.0


class Load:
    """Clients of a server. ``statuses``: how requests ended, by who sent them and the status (or what came instead);
    ``memory``: seconds since the start -> resident MB of the server, ``health``: -> seconds that /health took."""

    def __init__(self, running: Running, num_clients: int) -> None:
        self.running = running
        self.num_clients = num_clients
        self.address = running.url.split("/")[2]
        self.statuses: Counter[str] = Counter()
        self.memory: dict[float, float] = {}
        self.health: dict[float, float] = {}

    async def run(self, secs: float) -> None:
        """Let all of them work for ``secs``."""
        headers = {"Authorization": f"Bearer {KEY}"}
        timeout, connector = aiohttp.ClientTimeout(total=600), aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as session:
            self.asker = Asker(session, self.running.url, 64)
            async with session.get(f"{self.running.url}/models") as response:
                self.asker.name = (await response.json())["data"][0]["id"]
            self.begun, self.secs = time.monotonic(), secs
            kinds = [self.half_body, self.slow_headers, self.hang_up, self.wrong_key, self.huge_body, self.never_read]
            num_hostile = self.num_clients // HOSTILE
            clients = [self._repeat(kinds[i % len(kinds)]) for i in range(num_hostile)]
            clients += [self._repeat(self.ask) for _ in range(self.num_clients - num_hostile)]
            reading = asyncio.ensure_future(self._read_memory())
            await asyncio.gather(*clients)
            await reading

    def resident_mb(self, since: float, until: float) -> list[float]:
        """What was read between two moments."""
        return [mb for secs, mb in self.memory.items() if since <= secs < until]

    @property
    def passed(self) -> float:
        return time.monotonic() - self.begun

    async def _repeat(self, act: Callable[[], Awaitable[str]]) -> None:
        while self.passed < self.secs:
            try:
                end = await act()
            except (OSError, aiohttp.ClientError, asyncio.IncompleteReadError) as error:
                end = type(error).__name__
            self.statuses[f"{act.__name__} {end}"] += 1

    async def _read_memory(self) -> None:
        while self.passed < self.secs:
            passed = self.passed
            self.memory[passed] = resident_mb(self.running.pid)
            async with self.asker.session.get(f"http://{self.address}/health") as response:
                await response.read()
            self.health[passed] = self.passed - passed
            await asyncio.sleep(READ_SECS)

    # ---- clients: one request each, which returns how it ended

    async def ask(self) -> str:
        self.asker.count += 1
        try:
            await self.asker.ask(self.asker.count)
        except RuntimeError as error:  # its words begin with the status
            await asyncio.sleep(0.5)
            return str(error).split()[0]
        return "200"

    async def half_body(self) -> str:
        """Half of what was announced, then silence."""
        head = f"{self._head()}Content-Length: 100000\r\n\r\n"
        return await self._raw(head.encode() + b"x" * 50_000)

    async def slow_headers(self) -> str:
        """A byte a second, and never the empty line."""
        return await self._raw(self._head().encode(), drip=b"X-Slow: " + b"x" * 1000)

    async def hang_up(self) -> str:
        """Away after the first piece of the answer."""
        body = {"model": self.asker.name, "messages": [{"role": "user", "content": "Tell me everything."}]}
        body |= {"max_tokens": 2000, "stream": True}
        async with self.asker.session.post(f"{self.running.url}/chat/completions", json=body) as response:
            await response.content.readany()
            response.close()
        await asyncio.sleep(0.2)
        return str(response.status)

    async def wrong_key(self) -> str:
        headers = {"Authorization": f"Bearer {random.random()}"}
        body = b"x" * 1_000_000
        url = f"{self.running.url}/chat/completions?api_key=in-the-address"
        async with self.asker.session.post(url, data=body, headers=headers) as response:
            await response.read()
        await asyncio.sleep(0.2)
        return str(response.status)

    async def huge_body(self) -> str:
        """More than any request may bring, in chunks, so that nothing announces it."""

        async def body() -> Any:
            for _ in range(80):
                yield b"x" * (1 << 20)

        headers = {"Content-Type": "application/json"}
        url = f"{self.running.url}/chat/completions"
        async with self.asker.session.post(url, data=body(), headers=headers) as response:
            await response.read()
        await asyncio.sleep(0.5)
        return str(response.status)

    async def never_read(self) -> str:
        """A good request by a client that takes nothing of its answer for a while."""
        body = {"model": self.asker.name, "messages": [{"role": "user", "content": "x"}], "max_tokens": 500}
        data = json.dumps({**body, "stream": True}).encode()
        return await self._raw(f"{self._head()}Content-Length: {len(data)}\r\n\r\n".encode() + data, read_after=10)

    def _head(self) -> str:
        return (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self.address}\r\nAuthorization: Bearer {KEY}\r\n"
            "Content-Type: application/json\r\n"
        )

    async def _raw(self, data: bytes, *, drip: bytes = b"", read_after: float = 0) -> str:
        """The status that comes back for these bytes; "open" if the run ends first."""
        host, port = self.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 10)
        try:
            writer.write(data)
            await asyncio.sleep(min(read_after, max(0.0, self.secs - self.passed)))
            while self.passed < self.secs:
                try:
                    answer = await asyncio.wait_for(reader.read(100), 1)
                    return answer.split()[1].decode() if answer else "closed"
                except asyncio.TimeoutError:
                    writer.write(drip[:1])
                    drip = drip[1:]
            return "open"
        finally:
            writer.transport.abort()


def resident_mb(pid: int) -> float:
    """Memory of a process that is in RAM."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="of the server, name=value")
    parser.add_argument("--secs", type=float, default=600.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with server(demo_model(Path(folder) / "demo"), args.settings, key=KEY) as running:
            load = Load(running, args.clients)
            at_start = resident_mb(running.pid)
            asyncio.run(load.run(args.secs))
            time.sleep(12)  # two rounds of trimming
            at_end = resident_mb(running.pid)
    print(f"resident MB: {at_start:.0f} at the start, {at_end:.0f} twelve seconds after the last request")
    for minute in range(int(args.secs // 60) + 1):
        if readings := load.resident_mb(60 * minute, 60 * minute + 60):
            print(f"  minute {minute + 1}: {min(readings):.0f} to {max(readings):.0f}")
    print(f"/health took {max(load.health.values()):.1f} s at most")
    for end, count in sorted(load.statuses.items()):
        print(f"{count:>8} {end}")
    if args.json:
        Path(args.json).write_text(
            json.dumps({"statuses": load.statuses, "memory": load.memory, "health": load.health}) + "\n"
        )


if __name__ == "__main__":
    main()
