"""Runs a stage over shards: many rows concurrently, each settled as soon as it is done.

A separate thread reads the plan, checks audio files and draws prompts, so that requests never wait for these. Shards
follow each other without a pause. Several processes may work in one folder; each shard belongs to one of them.
"""

import asyncio
import logging
import queue
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tqdm import tqdm

from nemo_desta.recipes.engines.base import Engine
from nemo_desta.recipes.pipeline.folder import RecipeFolder, dump_line, read_lines
from nemo_desta.recipes.pipeline.shard import FLUSH_SECS, Shard
from nemo_desta.recipes.pipeline.stage import Outcome, Stage, Wanted

logger = logging.getLogger(__name__)

SWITCH_SECS = 2e-4
#: Rows that the reading thread passes on together.
CHUNK_ROWS = 64


def run_shards(
    folder: RecipeFolder,
    stage: Stage,
    numbers: Iterable[int],
    *,
    concurrency: int,
    engines: Sequence[Engine] = (),
    progress: bool = True,
) -> list[int]:
    """Make the rows of those shards ``numbers`` that are neither finished nor held by another process.

    ``concurrency``: number of rows in progress at once. ``engines`` are closed at the end in any case. Returns the
    shards that this call finished. When an error, Ctrl-C or a kill stops the run, settled rows are kept and the next
    call resumes after them.

    Raises:
        EngineError: the engine cannot be used. Any error of the stage is raised too.
    """

    async def run() -> list[int]:
        interval = sys.getswitchinterval()
        # The reading thread releases the GIL for every file; with the default interval it would wait 5 ms each time.
        sys.setswitchinterval(SWITCH_SECS)
        try:
            return await _Driver(folder, stage, concurrency, progress).run(list(numbers))
        finally:
            sys.setswitchinterval(interval)
            for engine in {id(engine): engine for engine in engines}.values():  # one LLM may write and judge
                await engine.close()

    return asyncio.run(run())


@dataclass
class _Open:
    """A shard in progress. ``ids``: in the plan's order; ``waiting``: unsettled rows; ``read``: its plan was read."""

    shard: Shard
    ids: list[str] = field(default_factory=list)
    waiting: int = 0
    read: bool = False


class _Driver:
    def __init__(self, folder: RecipeFolder, stage: Stage, concurrency: int, progress: bool) -> None:
        self.folder = folder
        self.stage = stage
        self.concurrency = max(1, concurrency)
        self.progress = progress
        self.finished: list[int] = []
        self._open: dict[int, _Open] = {}
        self._chunks: queue.Queue = queue.Queue(maxsize=max(4, 2 * self.concurrency // CHUNK_ROWS))
        self._stop = threading.Event()
        self._clock = time.monotonic()

    async def run(self, numbers: Sequence[int]) -> list[int]:
        total = self.folder.num_units() * self.stage.rows_per_unit
        self._bar = tqdm(total=total, desc="rows", unit="row", disable=not self.progress, smoothing=0.05)
        self._kept = self._dropped = self._news = 0
        self._slots = asyncio.Semaphore(self.concurrency)
        self._failure: asyncio.Future = asyncio.get_running_loop().create_future()
        tasks: set[asyncio.Task] = set()
        ticking = asyncio.create_task(self._tick())
        reader = threading.Thread(target=self._read, args=(numbers,), daemon=True, name="plan reader")
        reader.start()
        try:
            with ThreadPoolExecutor(1, "chunks") as waiting:
                await self._settle_all(waiting, tasks)
        finally:
            self._stop.set()
            ticking.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            reader.join()
            for state in self._open.values():
                state.shard.release()
            self._show()
            self._bar.close()
            if self._failure.done():
                self._failure.exception()
        return self.finished

    async def _settle_all(self, waiting: ThreadPoolExecutor, tasks: set[asyncio.Task]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            chunk = await loop.run_in_executor(waiting, self._chunks.get)
            if isinstance(chunk, BaseException):
                raise chunk
            if chunk is None:
                break
            state, first, rows, is_last = chunk
            self._open.setdefault(state.shard.number, state)
            state.ids += [wanted.id for wanted in rows]
            state.waiting += len(rows)
            for place, wanted in enumerate(rows, start=first):
                if wanted.id in state.shard.settled:
                    self._news += 1
                elif wanted.verdict is not None:
                    self._settled(state, place, wanted.id, Outcome(None, wanted.verdict))
                else:
                    await self._slot()
                    task = asyncio.create_task(self._make(state, place, wanted))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                    continue
                state.waiting -= 1
            state.read = is_last
            self._close(state)
        if tasks:
            done = asyncio.gather(*tasks)
            await asyncio.wait([done, self._failure], return_when=asyncio.FIRST_COMPLETED)
        if self._failure.done():
            raise self._failure.exception()

    async def _slot(self) -> None:
        """Wait until one more row may start. Raises an error that a row raised in the meantime."""
        if not self._slots.locked():
            await self._slots.acquire()
        else:
            acquired = asyncio.ensure_future(self._slots.acquire())
            await asyncio.wait([acquired, self._failure], return_when=asyncio.FIRST_COMPLETED)
            if not acquired.done():
                acquired.cancel()
        if self._failure.done():
            raise self._failure.exception()

    async def _make(self, state: _Open, place: int, wanted: Wanted) -> None:
        try:
            outcome = await self.stage.make(wanted.item)
            self._settled(state, place, wanted.id, outcome)
            state.waiting -= 1
            self._close(state)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if not self._failure.done():
                self._failure.set_exception(error)
        finally:
            self._slots.release()

    def _settled(self, state: _Open, place: int, row_id: str, outcome: Outcome) -> None:
        state.shard.append(place, row_id, outcome)
        self._kept += outcome.verdict is None
        self._dropped += outcome.verdict is not None
        self._news += 1

    async def _tick(self) -> None:
        """Periodically flush settled rows and update the progress bar."""
        while True:
            await asyncio.sleep(FLUSH_SECS)
            for state in self._open.values():
                state.shard.flush()
            self._show()

    def _show(self) -> None:
        self._bar.set_postfix(kept=self._kept, dropped=self._dropped, refresh=False)
        self._bar.update(self._news)
        self._news = 0

    def _close(self, state: _Open) -> None:
        """Finish a shard whose last row is settled."""
        if state.waiting or not state.read:
            return
        state.shard.finish(state.ids)
        del self._open[state.shard.number]
        self.finished.append(state.shard.number)
        now = time.monotonic()
        with (self.folder.shards / "seconds.jsonl").open("ab") as file:
            file.write(dump_line({"shard": state.shard.number, "seconds": round(now - self._clock, 3)}))
        self._clock = now

    # The methods below run in the reading thread.

    def _read(self, numbers: Sequence[int]) -> None:
        try:
            for number in numbers:
                shard = Shard.claim(self.folder, number)
                if shard is not None and not self._read_shard(shard):
                    shard.release()
                    return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _read_shard(self, shard: Shard) -> bool:
        """Pass on a shard's rows in chunks. False when the run has stopped."""
        state, first, rows = _Open(shard), 0, []
        for unit in read_lines(self.folder.plan_file(shard.number)):
            rows += self.stage.wanted(unit)
            if len(rows) >= CHUNK_ROWS:
                if not self._put((state, first, rows, False)):
                    return False
                first, rows = first + len(rows), []
        return self._put((state, first, rows, True))

    def _put(self, chunk: object) -> bool:
        while not self._stop.is_set():
            try:
                self._chunks.put(chunk, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
