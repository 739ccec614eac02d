"""The driver: every wanted row is settled once, whatever happens on the way, and the files do not tell the way."""

import json
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from nemo_desta.recipes.engines.base import EngineError
from nemo_desta.recipes.items import Rejection
from nemo_desta.recipes.pipeline import Outcome, RecipeFolder, RecipeMismatch, finish, run_shards, write_plan
from tests.recipes.pipeline.worker import RECIPE, Shout, run, units


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of rows and rejected rows."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.glob("r*/*.jsonl"))}


def test_every_row_is_written_once_in_the_plans_order(tmp_path: Path) -> None:
    summary = run(str(tmp_path / "out"), 1000, Shout())
    refused = 2 * sum(i % 7 == 6 for i in range(1000))
    assert summary.rows == {"train": 1000 - refused // 2, "valid": 1000 - refused // 2}
    assert summary.rejected == {"unlucky": refused} and len(summary.examples["unlucky"]) == 3
    assert summary.new_tokens == 7 * summary.written and summary.attempts == summary.written
    train = sorted((tmp_path / "out/rows").glob("train-*.jsonl"))
    assert [len(p.read_text().splitlines()) for p in train] == [400, 400, summary.rows["train"] - 800]
    ids = [json.loads(line)["id"] for p in train for line in p.open()]
    assert ids == [f"u{i:05d}-p0" for i in range(1000) if i % 7 != 6]
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if not p.name.startswith(".")) == [
        "recipe.json", "rejected", "rows", "summary.json",
    ]  # fmt: skip


def test_files_do_not_depend_on_shards_in_flight_or_the_order_of_answers(tmp_path: Path) -> None:
    run(str(tmp_path / "a"), 300, Shout(), concurrency=1)
    run(str(tmp_path / "b"), 300, Shout(0.005), concurrency=100)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_finished_recipe_is_only_read(tmp_path: Path) -> None:
    first = run(str(tmp_path), 30, Shout())
    again = Shout()
    assert run(str(tmp_path), 30, again) == first and not again.made


def test_killed_processes_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    run(str(tmp_path / "whole"), 600, Shout())
    command = [sys.executable, str(Path(__file__).with_name("worker.py")), str(tmp_path / "killed"), "600", "0.08"]
    rng, kills = random.Random(5), 0
    for _ in range(60):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if kills < 4:
            time.sleep(rng.uniform(0.4, 0.8))
            process.send_signal(signal.SIGKILL)
        errors = process.communicate()[1].decode()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors
        kills += 1
    assert kills >= 3 and contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_an_interrupt_while_the_last_rows_are_made_leaves_no_error_behind(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).with_name("worker.py")), str(tmp_path), "5", "60"]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=heed)
    while not list(tmp_path.glob("shards/*.part")):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)  # all five rows have begun
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1].decode()
    assert errors.rstrip().endswith("KeyboardInterrupt") and "never retrieved" not in errors, errors


def test_a_half_written_row_is_made_again(tmp_path: Path) -> None:
    run(str(tmp_path / "whole"), 40, Shout())
    folder = RecipeFolder(tmp_path / "cut")
    folder.claim(RECIPE)
    write_plan(folder, units(40), shard_size=50, progress=False)

    class Stops(Shout):
        async def make(self, item):
            if len(self.made) == 20:
                raise EngineError("the server has gone")
            return await super().make(item)

    with pytest.raises(EngineError, match="the server has gone"):
        run_shards(folder, Stops(), [0], concurrency=4, progress=False)
    part = folder.shards / "00000.part"
    part.write_bytes(part.read_bytes()[:-9])
    kept = sum(json.loads(line)["reason"] is None for line in part.read_bytes().splitlines()[:-1])
    assert 18 < kept < 20 + 4
    again = Shout()
    run(str(tmp_path / "cut"), 40, again)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert len(again.made) == 70 - kept


def test_an_edited_journal_is_named(tmp_path: Path) -> None:
    folder = RecipeFolder(tmp_path)
    folder.claim(RECIPE)
    write_plan(folder, units(4), shard_size=50, progress=False)
    (folder.shards / "00000.part").write_text('{"id": "u0"}\n')
    with pytest.raises(ValueError, match=r"00000.part:1: not a settled row"):
        run_shards(folder, Shout(), [0], concurrency=4, progress=False)


def test_two_processes_share_the_shards_of_one_folder(tmp_path: Path) -> None:
    run(str(tmp_path / "alone"), 400, Shout())
    command = [sys.executable, str(Path(__file__).with_name("worker.py")), str(tmp_path / "shared"), "400", "0.03"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
    summary = json.loads((tmp_path / "shared/summary.json").read_text())
    assert summary["attempts"] == summary["written"], "no row was made twice"


def test_a_part_of_the_shards_waits_for_the_others(tmp_path: Path) -> None:
    first = run(str(tmp_path / "out"), 300, Shout(), numbers=[0, 2, 4])
    assert first.missing_shards == 3 and not (tmp_path / "out/rows").exists() and "3 shards" in str(first)
    run(str(tmp_path / "out"), 300, Shout(), numbers=[1, 3, 5])
    run(str(tmp_path / "whole"), 300, Shout())
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_another_recipe_in_the_folder_is_refused_by_its_keys(tmp_path: Path) -> None:
    folder = RecipeFolder(tmp_path / "out")
    folder.claim({"seed": 3, "sampling": {"temperature": 0.05}, "llm": "a"})
    folder.claim({"llm": "a", "sampling": {"temperature": 0.05}, "seed": 3})
    with pytest.raises(RecipeMismatch, match=r"sampling.temperature \(there: 0.05, now: 0.7\); seed \(there: 3, now:"):
        folder.claim({"seed": 4, "sampling": {"temperature": 0.7}, "llm": "a"})
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").write_text("mine")
    with pytest.raises(RecipeMismatch, match="not empty"):
        RecipeFolder(tmp_path / "other").claim({})


def test_a_plan_killed_halfway_is_written_anew(tmp_path: Path) -> None:
    folder = RecipeFolder(tmp_path)
    folder.claim(RECIPE)

    def broken():
        yield from units(120)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_plan(folder, broken(), shard_size=50, progress=False)
    assert folder.num_shards() is None
    assert write_plan(folder, units(70), shard_size=50, progress=False) == 2
    assert folder.num_units() == 70 and not folder.plan_file(2).exists()
    with pytest.raises(ValueError, match="no clips"):
        write_plan(RecipeFolder(_claimed(tmp_path / "empty")), iter(()), shard_size=50, progress=False)


def test_checks_across_rows_see_them_in_the_plans_order(tmp_path: Path) -> None:
    folder = RecipeFolder(_claimed(tmp_path / "out"))
    shards = write_plan(folder, units(60), shard_size=10, progress=False)
    run_shards(folder, Shout(0.002), range(shards), concurrency=50, progress=False)
    seen: set[str] = set()

    def second_of_a_unit(row):
        name = row["id"][:6]
        if name in seen:
            return Rejection("second", name)
        seen.add(name)
        return None

    summary = finish(folder, [second_of_a_unit], progress=False)
    assert summary.rows == {"train": 52} and summary.rejected == {"second": 52, "unlucky": 16}
    rejected = [json.loads(line) for p in (tmp_path / "out/rejected").iterdir() for line in p.open()]
    assert sum(r["reason"] == "second" and r["row"] is not None for r in rejected) == 52


def test_a_stage_that_fails_stops_the_run_and_keeps_what_is_settled(tmp_path: Path) -> None:
    folder = RecipeFolder(_claimed(tmp_path / "out"))
    write_plan(folder, units(200), shard_size=1000, progress=False)

    class Fails(Shout):
        async def make(self, item) -> Outcome:
            if item["number"] == 100:
                raise ZeroDivisionError("a slip")
            return await super().make(item)

    with pytest.raises(ZeroDivisionError, match="a slip"):
        run_shards(folder, Fails(0.001), [0], concurrency=8, progress=False)
    assert (folder.shards / "00000.part").stat().st_size > 0
    assert finish(folder, progress=False).missing_shards == 1


def _claimed(path: Path) -> Path:
    RecipeFolder(path).claim(RECIPE)
    return path


def test_text_that_is_no_utf8_is_written_all_the_same(tmp_path: Path) -> None:
    folder = RecipeFolder(_claimed(tmp_path / "out"))
    write_plan(folder, units(1), shard_size=10, progress=False)

    class Broken(Shout):
        async def make(self, item) -> Outcome:
            row = {"id": f"{item['id']}-p{item['k']}", "response": "half \ud800 a pair", "split": None}
            return Outcome(row, Rejection("not text", "a lone surrogate"), 1)

    run_shards(folder, Broken(), [0], concurrency=2, progress=False)
    assert finish(folder, progress=False).rejected == {"not text": 2}
    (line,) = set((tmp_path / "out/rejected/all-00000.jsonl").read_text(encoding="utf-8").splitlines()[:1])
    assert json.loads(line)["row"]["response"] == "half ? a pair"
