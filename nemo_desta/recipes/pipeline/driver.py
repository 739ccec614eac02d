"""Runs a stage over shards: many rows concurrently, each settled as soon as it is done.

A separate thread reads the plan, checks audio files and draws prompts, so that requests never wait for these. Shards
follow each other without a pause. Several processes may work in one folder; each shard belongs to one of them.
"""

import asyncio
import sys
import time
from collections import deque
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from nemo_desta.progress import Progress
from nemo_desta.recipes.engines.base import Engine, tokens_of
from nemo_desta.recipes.items import Outcome, Stage, Wanted
from nemo_desta.recipes.pipeline.folder import RecipeFolder, dump_line, read_lines
from nemo_desta.recipes.pipeline.shard import FLUSH_SECS, Shard
from nemo_desta.recipes.run_async import run_async

#: Rows that the reading thread returns together.
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
    call resumes after them. Raises `EngineError` if the engine cannot be used, and any error of the stage.
    """

    async def run() -> list[int]:
        interval = sys.getswitchinterval()
        # The reading thread releases the GIL for every file; with the default interval it would wait 5 ms each time.
        sys.setswitchinterval(2e-4)
        try:
            return await _Driver(folder, stage, concurrency, engines, progress).run(list(numbers))
        finally:
            sys.setswitchinterval(interval)
            for engine in {id(engine): engine for engine in engines}.values():  # one LLM may write and judge
                await engine.close()

    return run_async(run())


class _Driver:
    def __init__(
        self, folder: RecipeFolder, stage: Stage, concurrency: int, engines: Sequence[Engine], progress: bool
    ) -> None:
        self.folder = folder
        self.stage = stage
        self.concurrency = max(1, concurrency)
        self.finished: list[int] = []
        self._open: dict[int, Shard] = {}
        self._tasks: set[asyncio.Task] = set()
        self._slots = asyncio.Semaphore(self.concurrency)
        self._failure: asyncio.Future = asyncio.get_running_loop().create_future()
        self._clock = time.monotonic()
        self._expected = [units * stage.rows_per_unit for units in folder.units_by_shard()]  # rows, by shard
        self._tokens = 0  # of rows that have ended
        self._bar = Progress("rows", tokens=partial(self._count_tokens, engines), shown=progress)
        self._kept, self._dropped = 0, 0

    async def run(self, numbers: Sequence[int]) -> list[int]:
        self._bar.total = sum(self._expected[number] for number in numbers)
        loop = asyncio.get_running_loop()
        ticking = asyncio.create_task(self._tick())
        reader = ThreadPoolExecutor(1, "plan reader")
        read = partial(loop.run_in_executor, reader, next, self._read(numbers), None)
        ahead = deque(read() for _ in range(max(4, 2 * self.concurrency // CHUNK_ROWS)))
        try:
            while (chunk := await ahead.popleft()) is not None:
                ahead.append(read())
                await self._start(*chunk)
            if self._tasks:
                await self._unless_failed(asyncio.wait(self._tasks))
        finally:
            running = [ticking, *ahead, *self._tasks]
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            reader.shutdown()
            for shard in self._open.values():
                shard.release()
            self._bar.close()
            if self._failure.done():
                self._failure.exception()
        return self.finished

    def _count_tokens(self, engines: Sequence[Engine]) -> int:
        counted = tokens_of(engines)
        return self._tokens if counted is None else counted

    def _read(self, numbers: Iterable[int]) -> Iterator[tuple[Shard, list[Wanted], bool]]:
        """Claims the shards and yields their rows in chunks, the last one of each with True; in the reading thread."""
        for number in numbers:
            if (shard := Shard.claim(self.folder, number)) is None:
                self._bar.total -= self._expected[number]  # another process makes them
                continue
            self._open[number] = shard
            rows: list[Wanted] = []
            for unit in read_lines(self.folder.plan_file(number)):
                rows += self.stage.wanted(unit)
                if len(rows) >= CHUNK_ROWS:
                    yield shard, rows, False
                    rows = []
            yield shard, rows, True

    async def _start(self, shard: Shard, rows: Sequence[Wanted], is_last: bool) -> None:
        """Settle the rows that need no LLM, and start the others one by one, as others end."""
        first = len(shard.ids)
        shard.ids += [wanted.id for wanted in rows]
        shard.waiting += len(rows)
        for place, wanted in enumerate(rows, start=first):
            if wanted.id in shard.settled:
                self._settle(shard, place, wanted.id, None)
            elif wanted.verdict is not None:
                self._settle(shard, place, wanted.id, Outcome(None, wanted.verdict))
            else:
                await self._unless_failed(self._slots.acquire())
                task = asyncio.create_task(self._make(shard, place, wanted))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        if is_last:
            self._bar.total += len(shard.ids) - self._expected[shard.number]
            self._done(shard)

    async def _unless_failed(self, waited: Awaitable[object]) -> None:
        """Wait for ``waited``. Raises the error of a row as soon as there is one."""
        waiting = asyncio.ensure_future(waited)
        try:
            await asyncio.wait([waiting, self._failure], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if self._failure.done():
            raise self._failure.exception()

    async def _make(self, shard: Shard, place: int, wanted: Wanted) -> None:
        try:
            self._settle(shard, place, wanted.id, await self.stage.make(wanted.item))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if not self._failure.done():
                self._failure.set_exception(error)
        finally:
            self._slots.release()

    def _settle(self, shard: Shard, place: int, row_id: str, outcome: Outcome | None) -> None:
        """Record the outcome of a row; None if the journal has it."""
        if outcome is None:
            self._bar.skip()
        else:
            shard.append(place, row_id, outcome)
            self._kept += outcome.verdict is None
            self._dropped += outcome.verdict is not None
            self._tokens += outcome.new_tokens
            self._bar.note = f"{self._kept:,} kept, {self._dropped:,} dropped"
            self._bar.update()
        self._done(shard)

    def _done(self, shard: Shard) -> None:
        """Count a settled row, or the end of the plan. Finish the shard if nothing is left."""
        shard.waiting -= 1
        if shard.waiting:
            return
        shard.finish()
        del self._open[shard.number]
        self.finished.append(shard.number)
        now = time.monotonic()
        with (self.folder.shards / "seconds.jsonl").open("ab") as file:
            file.write(dump_line({"shard": shard.number, "seconds": round(now - self._clock, 3)}))
        self._clock = now

    async def _tick(self) -> None:
        """Periodically flush settled rows and show the tokens."""
        while True:
            await asyncio.sleep(FLUSH_SECS)
            for shard in list(self._open.values()):  # the reading thread adds shards
                shard.flush()
            self._bar.update(0)
