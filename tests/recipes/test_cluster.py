"""Recipes on a local Ray cluster of two workers, one of which is killed midway: no row lost, none twice."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from nemo_desta.recipes.pipeline.shard import LINES_TOGETHER
from nemo_desta.recipes.run import run_recipe
from nemo_desta.testing.openai_server import ScriptedServer
from tests.recipes.test_run import given, rows_of

pytestmark = pytest.mark.slow


def many_clips(corpus: Path, count: int) -> None:
    """A manifest ``many.jsonl`` of ``count`` clips, copies of one file."""
    first = json.loads((corpus / "m.jsonl").read_text().splitlines()[0])
    with (corpus / "many.jsonl").open("w") as file:
        for i in range(count):
            audio = f"audio/copy{i}.flac"
            shutil.copy(corpus / first["audio"], corpus / audio)
            file.write(json.dumps({**first, "id": f"c{i}", "audio": audio, "transcript": f"word {i}"}) + "\n")


def workers() -> list[int]:
    """Process ids of Ray's workers that hold a `ShardWorker`."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if "ray::MapWorker" in line]


def test_a_killed_worker_loses_no_row_and_repeats_none(corpus: Path, llm_folder: Path) -> None:
    ray = pytest.importorskip("ray", reason="Ray Data is an extra of the latest stack only")
    many_clips(corpus, 240)
    killed: list[int] = []
    with ScriptedServer(delay_secs=0.05) as server:
        engine = {"name": "openai", "base_url": server.url, "model": server.model, "concurrency": 4}
        engine |= {"tokenizer": str(llm_folder)}
        settings = given(corpus, llm_folder, corpus="many.jsonl", engine=engine, shard_size=120, prompts_per_clip=2)
        settings["gates"] = {"loops": None, "language": None}

        def kill_one() -> None:
            until = time.monotonic() + 120
            while not killed and time.monotonic() < until:
                if len(server.calls) > 300 and (found := workers()):
                    os.kill(found[0], signal.SIGKILL)
                    killed.append(found[0])
                time.sleep(0.02)

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            killer = threading.Thread(target=kill_one, daemon=True)
            killer.start()
            runner = {"name": "ray", "num_workers": 2}
            summary = run_recipe({**settings, "runner": runner, "output": str(corpus / "ray")})
            killer.join(130)
        finally:
            ray.shutdown()
        asked = len(server.calls)
        alone = run_recipe({**settings, "output": str(corpus / "alone")})
    assert killed, "the test must have killed a worker"
    assert summary.written == alone.written == 480
    assert rows_of(corpus / "ray") == rows_of(corpus / "alone")
    lost = 2 * 4 + LINES_TOGETHER
    assert 480 <= asked <= 480 + lost, "what was in flight and not yet in the journal is asked for again, no more"
