"""The scheduler: waits for every caller, keeps to its batch and window, never hangs."""

import asyncio
import threading
from typing import Any

from nemo_desta.answering.sampling import Sampling
from nemo_desta.recipes.engines import EngineError
from nemo_desta.recipes.engines.scheduler import Job, Scheduler


def job(text: str) -> Job:
    return Job(list(map(ord, text)), Sampling())


def text_of(ids: Any) -> str:
    return "".join(map(chr, ids))


async def ask(scheduler: Scheduler, text: str) -> str:
    return text_of(await scheduler.submit(job(text)))


class Upper:
    """Upper-cases a batch; records batches, and fails if two run at a time. "slow" lasts until ``go`` is set."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.threads: set[str] = set()
        self.busy = threading.Lock()
        self.go = threading.Event()

    def __call__(self, jobs: list[Job]) -> list[Any]:
        assert self.busy.acquire(blocking=False), "two batches at a time"
        try:
            texts = [text_of(job.ids) for job in jobs]
            self.batches.append(texts)
            self.threads.add(threading.current_thread().name)
            if "slow" in texts:
                assert self.go.wait(20)
            if "bad" in texts:
                raise RuntimeError("bad job")
            return [(job, list(map(ord, text.upper()))) for job, text in zip(jobs, texts, strict=True)]
        finally:
            self.busy.release()


def test_jobs_that_come_over_many_turns_of_the_loop_share_batches_of_like_length() -> None:
    run = Upper()
    scheduler = Scheduler(run, size=3, window=100)

    async def late(text: str, turns: int) -> str:
        for _ in range(turns):
            await asyncio.sleep(0)
        return await ask(scheduler, text)

    async def main() -> list[str]:
        return await asyncio.gather(*(late("x" * n, turns) for turns, n in enumerate([5, 1, 4, 2, 6, 3])))

    assert asyncio.run(main()) == ["XXXXX", "X", "XXXX", "XX", "XXXXXX", "XXX"]
    assert run.batches == [["xxxxxx", "xxxxx", "xxxx"], ["xxx", "xx", "x"]]
    assert run.threads == {"llm_0"}


def test_window_bounds_what_is_planned_together() -> None:
    run = Upper()
    scheduler = Scheduler(run, size=4, window=4)

    async def main() -> list[str]:
        return await asyncio.gather(*(ask(scheduler, str(i)) for i in range(10)))

    assert asyncio.run(main()) == [str(i) for i in range(10)]
    assert [len(batch) for batch in run.batches] == [4, 4, 2]


def test_rows_that_ask_again_after_each_answer_fill_whole_batches() -> None:
    run = Upper()
    scheduler = Scheduler(run, size=8, window=8)

    async def row(i: int) -> str:
        text = str(i)
        for _ in range(3):
            text += await ask(scheduler, text)
            await asyncio.sleep(0)
        return text

    async def main() -> list[str]:
        return await asyncio.gather(*map(row, range(8)))

    assert asyncio.run(main()) == [str(i) * 8 for i in range(8)]
    assert [len(batch) for batch in run.batches] == [8, 8, 8]


def test_jobs_join_the_batch_as_others_end() -> None:
    """Each job takes as many calls as it has letters."""
    calls: dict[Job, int] = {}
    batches: list[list[str]] = []

    def advance(jobs: list[Job]) -> list[Any]:
        batches.append([text_of(job.ids) for job in jobs])
        for job in jobs:
            calls[job] = calls.get(job, 0) + 1
        return [(job, job.ids) for job in jobs if calls[job] == len(job.ids)]

    scheduler = Scheduler(advance, size=2, window=2)

    async def main() -> list[str]:
        return await asyncio.gather(*(ask(scheduler, text) for text in ("aaa", "b", "cc", "d")))

    assert asyncio.run(main()) == ["aaa", "b", "cc", "d"]
    assert batches == [["aaa", "b"], ["aaa", "cc"], ["aaa", "cc"], ["d"]]


def test_failed_batch_fails_its_own_jobs_only() -> None:
    scheduler = Scheduler(Upper(), size=2, window=100)

    async def main() -> list[Any]:
        texts = ["strong", "wrong", "bad", "bac", "ok", "a"]
        return await asyncio.gather(*(ask(scheduler, text) for text in texts), return_exceptions=True)

    first, second, third, fourth, *rest = asyncio.run(main())
    assert [first, second, *rest] == ["STRONG", "WRONG", "OK", "A"]
    assert isinstance(third, EngineError) and isinstance(fourth, EngineError)
    assert "RuntimeError: bad job" in str(third)


def test_cancelled_caller_costs_nothing_and_harms_nobody() -> None:
    run = Upper()
    scheduler = Scheduler(run, size=1, window=1)

    async def main() -> str:
        tasks = [asyncio.create_task(ask(scheduler, text)) for text in ("slow", "longer", "longest")]
        while not run.batches:
            await asyncio.sleep(0.001)
        tasks[1].cancel()
        run.go.set()
        await asyncio.wait(tasks)
        return tasks[2].result()

    assert asyncio.run(main()) == "LONGEST"
    assert run.batches == [["slow"], ["longest"]]


def test_loop_that_ends_in_the_middle_leaves_a_scheduler_that_works() -> None:
    run = Upper()
    scheduler = Scheduler(run, size=1, window=1)

    async def interrupted() -> None:
        for text in ("slow", "longer"):
            asyncio.get_running_loop().create_task(ask(scheduler, text))
        while not run.batches:
            await asyncio.sleep(0.001)

    async def next_loop() -> str:
        task = asyncio.create_task(ask(scheduler, "next"))
        await asyncio.sleep(0.01)
        assert run.batches == [["slow"]]
        run.go.set()
        return await task

    asyncio.run(interrupted())  # the batch is still in its thread when the next loop asks
    assert asyncio.run(next_loop()) == "NEXT"
    assert run.batches == [["slow"], ["next"]]


def test_close_cancels_what_waits() -> None:
    run = Upper()
    scheduler = Scheduler(run, size=1, window=1)

    async def main() -> list[bool]:
        tasks = [asyncio.create_task(ask(scheduler, text)) for text in ("slow", "longer")]
        while not run.batches:
            await asyncio.sleep(0.001)
        asyncio.get_running_loop().call_later(0.01, run.go.set)
        await scheduler.close()
        await asyncio.wait(tasks)
        assert await ask(scheduler, "again") == "AGAIN"
        return [task.cancelled() for task in tasks]

    assert asyncio.run(main()) == [True, True]
    assert run.batches == [["slow"], ["again"]]
