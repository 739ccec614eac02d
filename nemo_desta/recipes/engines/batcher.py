"""Single requests into batches, for models that run in this process one call at a time.

Rows ask one by one as coroutines; a model wants many of like length at once. Whenever the model is free, the batcher
waits until no caller comes up with anything more, cuts what is there into batches and runs them in a worker thread.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from nemo_desta.recipes.engines.base import EngineError

Job = TypeVar("Job")
Result = TypeVar("Result")

#: Turns of the event loop without a new job after which every caller is taken to wait. An answer wakes its row, which
#: may pass a few queues before it asks again: each takes a turn.
QUIET_TURNS = 20


class Batcher(Generic[Job, Result]):
    """Collects jobs and runs them in batches; results come as each batch ends.

    Args:
        run: the results of a batch, in order; called in one worker thread, never twice at a time.
        plan: cuts the jobs of one window into batches: lists of their positions, each position in one list.
        window: jobs that are planned together at most.
    """

    def __init__(
        self,
        run: Callable[[list[Job]], Sequence[Result]],
        plan: Callable[[list[Job]], list[list[int]]],
        *,
        window: int,
    ) -> None:
        self.run = run
        self.plan = plan
        self.window = window
        self._waiting: list[tuple[Job, asyncio.Future[Result]]] = []
        self._worker: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: ThreadPoolExecutor | None = None

    async def submit(self, job: Job) -> Result:
        """The job's result. Raises `EngineError` from whatever its batch raised."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # jobs of a loop that has ended have nobody left to wait for them
            self._loop, self._waiting, self._worker = loop, [], None
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((job, future))
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        return await future

    async def close(self) -> None:
        """Cancel the jobs that wait, and end the thread when the batch in it is over. Later jobs start a new one."""
        if self._worker is not None and self._loop is asyncio.get_running_loop():
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        self._worker = None
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.to_thread(thread.shutdown)

    async def _work(self) -> None:
        while self._waiting:
            await self._until_quiet()
            window, self._waiting = self._waiting[: self.window], self._waiting[self.window :]
            try:
                await self._run_window(window)
            except asyncio.CancelledError:
                for _, future in window + self._waiting:
                    future.cancel()
                self._waiting = []
                raise

    async def _until_quiet(self) -> None:
        seen, turns = 0, 0
        while turns < QUIET_TURNS and len(self._waiting) < self.window:
            turns = turns + 1 if len(self._waiting) == seen else 0
            seen = len(self._waiting)
            await asyncio.sleep(0)

    async def _run_window(self, window: list[tuple[Job, "asyncio.Future[Result]"]]) -> None:
        window = [(job, future) for job, future in window if not future.done()]
        try:
            plan = self.plan([job for job, _ in window])
        except Exception as error:
            _fail(window, error)
            return
        for positions in plan:
            batch = [window[i] for i in positions if not window[i][1].done()]  # a caller may have been cancelled
            if not batch:
                continue
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="llm")
            jobs = [job for job, _ in batch]
            try:
                results = await asyncio.get_running_loop().run_in_executor(self._thread, self.run, jobs)
                for (_, future), result in zip(batch, results, strict=True):
                    if not future.done():
                        future.set_result(result)
            except Exception as error:
                _fail(batch, error)


def _fail(jobs: list[tuple[Job, "asyncio.Future[Result]"]], error: Exception) -> None:
    for _, future in jobs:
        if not future.done():
            what = str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
            failure = EngineError(f"the model failed on a batch of {len(jobs)}: {what}")
            failure.__cause__ = error
            future.set_exception(failure)
