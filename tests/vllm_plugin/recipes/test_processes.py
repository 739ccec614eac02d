"""Recipes with vLLM in a process of its own: the one that it starts itself, and its server."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_desta.recipes.pipeline import RecipeFolder
from nemo_desta.recipes.run import run_recipe
from tests.vllm_plugin.recipes.conftest import CLIPS, START_SECS, VLLM, files, settings, settled

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

RUN = """
import json, sys
from nemo_desta.recipes.run import run_recipe
if __name__ == "__main__":  # vLLM's process imports this module again
    print(run_recipe(json.loads(sys.argv[1])))
"""


def test_the_death_of_vllms_process_ends_the_run_with_its_reason_and_keeps_the_rows(
    llm_folder: Path, tmp_path: Path
) -> None:
    """As by the system for lack of memory. vLLM's own ``step`` would wait for ever."""
    (tmp_path / "run.py").write_text(RUN)
    long = {"sampling": {"max_new_tokens": 400, "temperature": 0.0}, "max_new_tokens_by_kind": {"ask": 6}}
    recipe = settings(tmp_path, llm_folder, VLLM, request=long)
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command, log = [sys.executable, str(tmp_path / "run.py"), json.dumps(recipe)], tmp_path / "log"
    with log.open("w") as out:
        run = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    folder = RecipeFolder(tmp_path / "out")
    try:
        until = time.monotonic() + START_SECS
        while not settled(folder):
            assert run.poll() is None and time.monotonic() < until, log.read_text()[-4000:]
            time.sleep(0.05)
        [core] = [pid for pid in children(run.pid) if "resource_tracker" not in command_line(pid)]
        os.kill(core, signal.SIGKILL)
        assert run.wait(120) == 1
        assert "vLLM's process has ended" in log.read_text()
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
    assert 0 < settled(folder) < 2 * CLIPS and not folder.finished


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


@pytest.fixture
def server(llm_folder: Path, tmp_path: Path) -> Iterator[str]:
    """The address of vLLM's own server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(llm_folder)]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    log = tmp_path / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--enforce-eager", "--max-num-seqs", "4"], stdout=out, stderr=subprocess.STDOUT
        )
    try:
        until = time.monotonic() + START_SECS
        while not ready(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None and time.monotonic() < until, log.read_text()[-4000:]
            time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def ready(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5).close()
        return True
    except OSError:
        return False


def test_rows_from_vllms_server_equal_those_of_transformers(
    server: str, llm_folder: Path, expected: Path, tmp_path: Path
) -> None:
    engine = {"name": "openai", "base_url": server, "tokenizer": str(llm_folder), "concurrency": 8}
    run_recipe({**settings(tmp_path, llm_folder, engine), "llm": "tiny"})
    # The server names its folder as revision and says no number format; the one error is in its words.
    other = ("llm_revision", "llm_dtype", "detail")
    assert files(tmp_path / "out", other) == files(expected, other)
