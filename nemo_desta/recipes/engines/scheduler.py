"""Feeds requests of many coroutines to a model that runs in this process, in one worker thread.

The scheduler keeps the model's batch full. It gives the model all requests of the batch again and again, until the
model has an answer to each of them. A request may join as soon as another one has its answer.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from nemo_desta.answering.sampling import Sampling
from nemo_desta.recipes.engines.base import EngineError, Generation

#: Turns of the event loop without a new job after which all callers are assumed to wait. An answer wakes its row, and
#: the row may pass a few queues before it asks again; each queue takes a turn.
QUIET_TURNS = 20


@dataclass(eq=False)  # two equal requests are two jobs
class Job:
    """A request as ids. ``ids``: of the rendered prompt and prefix. ``new``: ids generated so far."""

    ids: list[int]
    sampling: Sampling
    new: list[int] = field(default_factory=list)
    answer: Any = None  # the asyncio future that its caller waits for

    @property
    def positions(self) -> int:
        """Positions of the LLM's context that prompt and answer may take."""
        return len(self.ids) + self.sampling.max_new_tokens


#: The new ids of a job, or its error.
Result = Sequence[int] | Generation
#: Works on a batch and returns the jobs that ended, with their results; see `Scheduler`.
Advance = Callable[[list[Job]], Iterable[tuple[Job, Result]]]


class Scheduler:
    """Keeps a batch of ``size`` jobs full.

    ``advance`` does a piece of work on a batch, and returns the jobs that ended in it with their results. It is called
    in one worker thread with all jobs of the batch, the new ones and those of earlier calls that have no result yet. A
    job that is not in the batch any more has been cancelled. ``window``: jobs that are sorted together if they fill
    several batches. The longest prompts come first, so that a batch holds like lengths.
    """

    def __init__(self, advance: Advance, *, size: int, window: int) -> None:
        self.advance = advance
        self.size = size
        self.window = window
        self._new: list[Job] = []
        self._sorted: deque[Job] = deque()
        self._batch: list[Job] = []
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="llm")

    async def submit(self, job: Job) -> Result:
        """The job's result. Raises `EngineError` if the model raises anything."""
        loop = asyncio.get_running_loop()
        if stale := self._worker is None or self._worker.get_loop() is not loop:
            self._forget()  # the callers of an event loop that has ended are gone
        if stale or self._worker.done():
            self._worker = loop.create_task(self._work())
        job.answer = loop.create_future()
        self._new.append(job)
        return await job.answer

    async def close(self) -> None:
        """Cancel all jobs, and end the thread when its present call is over. Later jobs start a new thread."""
        worker, self._worker = self._worker, None
        if worker is not None and worker.get_loop() is asyncio.get_running_loop():
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)
        thread, self._thread = self._thread, ThreadPoolExecutor(1, thread_name_prefix="llm")
        await asyncio.to_thread(thread.shutdown)

    async def _work(self) -> None:
        try:
            while self._new or self._sorted or self._batch:
                if not self._batch:
                    seen, turns = 0, 0
                    while turns < QUIET_TURNS and len(self._new) < self.window:
                        turns = turns + 1 if len(self._new) == seen else 0
                        seen = len(self._new)
                        await asyncio.sleep(0)
                self._fill()
                if self._batch:
                    await self._advance()
        except asyncio.CancelledError:
            for job in self._forget():
                job.answer.cancel()
            raise

    def _forget(self) -> list[Job]:
        jobs = [*self._new, *self._sorted, *self._batch]
        self._new, self._sorted, self._batch = [], deque(), []
        return jobs

    def _fill(self) -> None:
        """Move waiting jobs into the batch. Jobs whose caller was cancelled go."""
        self._batch = [job for job in self._batch if not job.answer.done()]
        while len(self._batch) < self.size and (self._new or self._sorted):
            if not self._sorted:
                window, self._new = self._new[: self.window], self._new[self.window :]
                if self.size < self.window:
                    window.sort(key=lambda job: -len(job.ids))
                self._sorted = deque(window)
            job = self._sorted.popleft()
            if not job.answer.done():
                self._batch.append(job)

    async def _advance(self) -> None:
        batch = list(self._batch)
        try:
            ended = await asyncio.get_running_loop().run_in_executor(self._thread, self.advance, batch)
        except Exception as error:
            self._batch = []
            what = str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
            for job in batch:
                if not job.answer.done():
                    failure = EngineError(f"the model failed on a batch of {len(batch)}: {what}")
                    failure.__cause__ = error
                    job.answer.set_exception(failure)
            return
        for job, result in ended:
            if not job.answer.done():  # the caller may have been cancelled
                job.answer.set_result(result)
