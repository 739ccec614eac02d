"""A whole recipe over HTTP, killed twenty times at random moments: the rows are those of an uninterrupted run."""

import multiprocessing
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_desta.recipes.pipeline import RecipeFolder
from nemo_desta.recipes.run import run_recipe
from tests.recipes.test_cluster import many_clips
from tests.recipes.test_run import given, rows_of

pytestmark = pytest.mark.slow
KILLS, CLIPS = 20, 1100


@pytest.fixture
def server() -> Iterator[str]:
    """The URL of a scripted server in a process of its own, with delays and faults."""
    command = [sys.executable, "-m", "nemo_desta.testing.openai_server", "--delay", "0.05", "--words", "12"]
    command += ["--http-500", "0.05", "--dropped", "0.02", "--malformed", "0.02"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def test_twenty_kills_change_nothing(corpus: Path, llm_folder: Path, server: str) -> None:
    many_clips(corpus, CLIPS)
    engine = {"name": "openai", "base_url": server, "model": "scripted", "tokenizer": str(llm_folder)}
    engine |= {"first_wait_secs": 0.01, "concurrency": 16}
    settings = given(corpus, llm_folder, corpus="many.jsonl", engine=engine, prompts_per_clip=2, shard_size=150)
    settings["gates"] = {"language": None}
    whole = run_recipe({**settings, "output": str(corpus / "whole")})
    assert whole.written + whole.num_rejected == 2 * CLIPS and whole.written > 2000

    killed = RecipeFolder(corpus / "killed")
    context, rng = multiprocessing.get_context("fork"), random.Random(1)
    for number in range(KILLS):
        process = context.Process(target=run_recipe, args=({**settings, "output": str(killed.path)},))
        process.start()
        before, until = settled(killed), time.monotonic() + 60
        while number % 3 and process.is_alive() and settled(killed) == before and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.15))  # every third one from the start on: before and while it plans
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run must not have ended yet"
    assert 0 < settled(killed) and not killed.finished
    summary = run_recipe({**settings, "output": str(killed.path)})
    assert summary.rows == whole.rows and summary.rejected == whole.rejected
    assert rows_of(killed.path) == rows_of(corpus / "whole")
    for name in ("rows", "rejected"):
        for file in (killed.path / name).iterdir():
            assert file.read_bytes() == (corpus / "whole" / name / file.name).read_bytes()
    print(f"recipe: {KILLS} kills, {KILLS} resumes, all {whole.written} rows identical byte by byte")
    shutil.rmtree(killed.path)


def settled(folder: RecipeFolder) -> int:
    """Bytes of settled rows so far."""
    return sum(path.stat().st_size for path in folder.shards.glob("[0-9]*") if path.suffix in (".part", ".jsonl"))
