"""The batcher: waits for everyone, keeps to its window, never hangs."""

import asyncio
import threading
from typing import Any

import pytest

from nemo_desta.recipes.engines import EngineError
from nemo_desta.recipes.engines.batcher import Batcher


def by_length(size: int) -> Any:
    def plan(jobs: list[str]) -> list[list[int]]:
        order = sorted(range(len(jobs)), key=lambda i: len(jobs[i]))
        return [order[first : first + size] for first in range(0, len(order), size)]

    return plan


class Upper:
    """Upper-cases a batch; records batches, and fails if two run at a time. "slow" lasts until ``go`` is set."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.threads: set[str] = set()
        self.busy = threading.Lock()
        self.go = threading.Event()

    def __call__(self, jobs: list[str]) -> list[str]:
        assert self.busy.acquire(blocking=False), "two batches at a time"
        try:
            self.batches.append(jobs)
            self.threads.add(threading.current_thread().name)
            if "slow" in jobs:
                assert self.go.wait(20)
            if "bad" in jobs:
                raise RuntimeError("bad job")
            return [job.upper() for job in jobs]
        finally:
            self.busy.release()


def test_jobs_that_come_over_many_turns_of_the_loop_share_batches_of_like_length() -> None:
    run = Upper()
    batcher = Batcher(run, by_length(3), window=100)

    async def late(job: str, turns: int) -> str:
        for _ in range(turns):
            await asyncio.sleep(0)
        return await batcher.submit(job)

    async def main() -> list[str]:
        return await asyncio.gather(*(late("x" * n, turns) for turns, n in enumerate([5, 1, 4, 2, 6, 3])))

    assert asyncio.run(main()) == ["XXXXX", "X", "XXXX", "XX", "XXXXXX", "XXX"]
    assert run.batches == [["x", "xx", "xxx"], ["xxxx", "xxxxx", "xxxxxx"]]
    assert run.threads == {"llm_0"}


def test_window_bounds_what_is_planned_together() -> None:
    run = Upper()
    batcher = Batcher(run, by_length(10), window=4)

    async def main() -> list[str]:
        return await asyncio.gather(*(batcher.submit(str(i)) for i in range(10)))

    assert asyncio.run(main()) == [str(i) for i in range(10)]
    assert [len(batch) for batch in run.batches] == [4, 4, 2]


def test_rows_that_ask_again_after_each_answer_fill_whole_batches() -> None:
    run = Upper()
    batcher = Batcher(run, by_length(8), window=8)

    async def row(i: int) -> str:
        text = str(i)
        for _ in range(3):
            text += await batcher.submit(text)
            await asyncio.sleep(0)
        return text

    async def main() -> list[str]:
        return await asyncio.gather(*map(row, range(8)))

    assert asyncio.run(main()) == [str(i) * 8 for i in range(8)]
    assert [len(batch) for batch in run.batches] == [8, 8, 8]


def test_failed_batch_fails_its_own_jobs_only() -> None:
    batcher = Batcher(Upper(), by_length(2), window=100)

    async def main() -> list[Any]:
        jobs = ["a", "b", "bad", "bac", "fine", "good"]
        return await asyncio.gather(*map(batcher.submit, jobs), return_exceptions=True)

    first, second, third, fourth, *rest = asyncio.run(main())
    assert [first, second, *rest] == ["A", "B", "FINE", "GOOD"]
    assert isinstance(third, EngineError) and isinstance(fourth, EngineError)
    assert "RuntimeError: bad job" in str(third)


def test_plan_that_fails_and_run_that_loses_a_result_reach_the_callers() -> None:
    def no_plan(jobs: list[str]) -> list[list[int]]:
        raise ValueError("no plan")

    with pytest.raises(EngineError, match="no plan"):
        asyncio.run(Batcher(Upper(), no_plan, window=4).submit("a"))
    with pytest.raises(EngineError, match="zip"):
        asyncio.run(Batcher(lambda jobs: [], by_length(1), window=4).submit("a"))


def test_cancelled_caller_costs_nothing_and_harms_nobody() -> None:
    run = Upper()
    batcher = Batcher(run, by_length(1), window=100)

    async def main() -> str:
        tasks = [asyncio.create_task(batcher.submit(job)) for job in ("slow", "longer", "longest")]
        while not run.batches:
            await asyncio.sleep(0.001)
        tasks[1].cancel()
        run.go.set()
        await asyncio.wait(tasks)
        return tasks[2].result()

    assert asyncio.run(main()) == "LONGEST"
    assert run.batches == [["slow"], ["longest"]]


def test_loop_that_ends_in_the_middle_leaves_a_batcher_that_works() -> None:
    run = Upper()
    batcher = Batcher(run, by_length(1), window=100)

    async def interrupted() -> None:
        for job in ("slow", "longer"):
            asyncio.get_running_loop().create_task(batcher.submit(job))
        while not run.batches:
            await asyncio.sleep(0.001)

    async def next_loop() -> str:
        task = asyncio.create_task(batcher.submit("next"))
        await asyncio.sleep(0.01)
        assert run.batches == [["slow"]]
        run.go.set()
        return await task

    asyncio.run(interrupted())  # the batch is still in its thread when the next loop asks
    assert asyncio.run(next_loop()) == "NEXT"
    assert run.batches == [["slow"], ["next"]]


def test_close_cancels_what_waits() -> None:
    run = Upper()
    batcher = Batcher(run, by_length(1), window=100)

    async def main() -> list[bool]:
        tasks = [asyncio.create_task(batcher.submit(job)) for job in ("slow", "longer")]
        while not run.batches:
            await asyncio.sleep(0.001)
        asyncio.get_running_loop().call_later(0.01, run.go.set)
        await batcher.close()
        await asyncio.wait(tasks)
        assert await batcher.submit("again") == "AGAIN"
        return [task.cancelled() for task in tasks]

    assert asyncio.run(main()) == [True, True]
    assert run.batches == [["slow"], ["again"]]
