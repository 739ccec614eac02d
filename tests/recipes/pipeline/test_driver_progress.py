"""What a run of a recipe shows: all of its rows, its own speed, and tokens before a row has ended."""

import asyncio
import logging
from pathlib import Path

import pytest

from nemo_desta import progress
from nemo_desta.recipes.engines.base import EngineError
from nemo_desta.recipes.pipeline import RecipeFolder, run_shards, write_plan
from nemo_desta.recipes.pipeline import driver as driving
from tests.recipes.pipeline.worker import RECIPE, Shout, units


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[progress.Progress]:
    made: list[progress.Progress] = []

    class Kept(progress.Progress):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(driving, "Progress", Kept)
    return made


def planned(path: Path, count: int, shard_size: int) -> RecipeFolder:
    folder = RecipeFolder(path)
    folder.claim(RECIPE)
    write_plan(folder, units(count), shard_size=shard_size, progress=False)
    return folder


def test_a_resumed_run_counts_its_own_rows_only(tmp_path: Path, bars: list, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nemo_desta.progress")
    folder = planned(tmp_path, 45, 20)  # 90 rows; the last shard is smaller

    class Stops(Shout):
        async def make(self, item):
            if len(self.made) == 50:
                raise EngineError("the server has gone")
            return await super().make(item)

    with pytest.raises(EngineError):
        run_shards(folder, Stops(), range(3), concurrency=1)
    run_shards(folder, again := Shout(), [1, 2], concurrency=1)
    assert [bar.total for bar in bars] == [90, 50]
    refused = int(bars[1].note.split()[2])
    assert bars[1].done == 50 and bars[1]._skipped == 50 - len(again.made) - refused > 0
    assert caplog.messages[-1].startswith("rows: 50 of 50, ")
    assert f"{len(again.made)} kept" in caplog.messages[-1] and "tokens/s" in caplog.messages[-1]


def test_rows_of_another_process_are_not_waited_for(tmp_path: Path, bars: list) -> None:
    folder = planned(tmp_path, 45, 20)
    other = driving.Shard.claim(folder, 1)
    assert run_shards(folder, Shout(), range(3), concurrency=4, progress=False) == [0, 2]
    assert bars[0].total == bars[0].done == 50
    other.release()


def test_tokens_are_shown_before_the_first_row_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nemo_desta.progress")
    monkeypatch.setattr(progress, "FIRST_SECS", 0.25)
    folder = planned(tmp_path, 1, 20)

    class Slow:
        new_tokens = 500  # of an earlier job

        async def close(self) -> None: ...

    class Waits(Shout):
        async def make(self, item):
            for _ in range(8):
                engine.new_tokens += 4
                await asyncio.sleep(0.05)
            return await super().make(item)

    engine = Slow()
    run_shards(folder, Waits(), [0], concurrency=2, engines=[engine, engine])
    first, last = caplog.messages
    assert first.startswith("rows: 0 of 2 (0 %), ") and int(first.split()[6]) in range(16, 64) and "tokens/s" in first
    assert last.startswith("rows: 2 of 2, ") and "tokens/s" in last and last.endswith("2 kept, 0 dropped")
