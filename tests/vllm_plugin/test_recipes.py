"""The recipes' engines vllm and openai on the real vLLM, on a CPU in float32, against the engine of transformers."""

import asyncio
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_desta.errors import ConfigError
from nemo_desta.recipes.engines import EngineError, Request, SamplingConfig, VLLMEngine, build_engine, generate_all
from nemo_desta.recipes.pipeline import RecipeFolder
from nemo_desta.recipes.run import run_recipe
from nemo_desta.testing.data import character_tokenizer
from nemo_desta.testing.models import tiny_llm
from tests.vllm_plugin.conftest import HEAD_SIZE

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

#: Few requests run at once, so that most of them wait in vLLM's queue.
VLLM = {"name": "vllm", "dtype": "float32", "engine_args": {"enforce_eager": True, "max_num_seqs": 4}}
CONTEXT, CLIPS, START_SECS = 512, 24, 900
GREEDY = SamplingConfig(24, temperature=0.0)
PROMPTS = [
    {"prompt_id": "who", "prompt": "Who?", "requires": ["gender"], "kind": "ask"},
    {"prompt_id": "said", "prompt": "What is said?", "requires": ["transcript"], "kind": "describe"},
]


@pytest.fixture(scope="module")
def llm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llm") / "tiny"
    shape = {"head_dim": HEAD_SIZE, "max_position_embeddings": CONTEXT, "tie_word_embeddings": False}
    # Wide initial weights: with transformers' own, every prompt gets the same answer.
    ids = {"pad_token_id": None, "bos_token_id": None, "initializer_range": 0.2}
    return tiny_llm(folder, tokenizer=character_tokenizer(), **shape, **ids)


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    """vLLM runs in this process, without plugins."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("VLLM_PLUGINS", "none")
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("VLLM_NO_USAGE_STATS", "1")
        yield


@pytest.fixture(scope="module")
def engine(llm_folder: Path, one_process: None) -> Iterator[VLLMEngine]:
    from vllm.distributed import cleanup_dist_env_and_memory

    engine = build_engine(VLLM, str(llm_folder))
    yield engine
    engine.llm.llm_engine.engine_core.shutdown()
    del engine
    gc.collect()
    cleanup_dist_env_and_memory()


@pytest.fixture
def shared(engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> VLLMEngine:
    """Recipes use the engine that is already there."""
    monkeypatch.setattr(VLLMEngine, "from_pretrained", lambda *args, **options: engine)
    return engine


def settings(root: Path, llm: Path, engine: dict[str, Any], output: str, **more: Any) -> dict[str, Any]:
    """Of a recipe with `CLIPS` clips and two rows for each; one clip's transcript is longer than the LLM's context."""
    (root / "m.jsonl").write_text("".join(json.dumps(clip(number)) + "\n" for number in range(CLIPS)))
    request = {"sampling": {"max_new_tokens": 40, "temperature": 0.0}, "max_new_tokens_by_kind": {"ask": 6}}
    base = {"corpus": "m.jsonl", "data_root": str(root), "llm": str(llm), "prompts": PROMPTS, "prompts_per_clip": 2}
    base |= {"engine": engine, "output": str(root / output), "request": request, "audio": {"check": "off"}}
    return {**base, "gates": {"empty": False}, "progress": False, "report": False, "shard_size": 10, **more}


def clip(number: int) -> dict[str, Any]:
    about = {"source": "toy", "split": "train", "domain": "speech", "audio": f"{number}.wav", "duration": 0.3}
    words = "word " * (CONTEXT if number == 7 else number % 5) + str(number)
    return {"id": f"c{number}", **about, "transcript": words, "attributes": {"gender": ("male", "female")[number % 2]}}


def files(folder: Path, without: tuple[str, ...] = ()) -> dict[str, list[dict[str, Any]]]:
    """The kept and the rejected rows of a recipe, ``without`` these keys."""
    found = {}
    for path in sorted(folder.glob("r*/*.jsonl")):
        found[path.parent.name + path.name] = rows = [json.loads(line) for line in path.open()]
        for row in rows:
            for key in without:
                row.pop(key, None)
                (row.get("row") or {}).pop(key, None)
    return found


@pytest.fixture(scope="module")
def expected(llm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe's folder by the engine of transformers."""
    root = tmp_path_factory.mktemp("hf")
    summary = run_recipe(settings(root, llm_folder, {"name": "hf", "dtype": "float32"}, "out"))
    assert summary.written > CLIPS and summary.rejected["LLM error"] == 1
    return root / "out"


def test_rows_equal_those_of_transformers_and_one_prompt_beyond_the_context_is_one_rejected_row(
    shared: VLLMEngine, llm_folder: Path, expected: Path, tmp_path: Path
) -> None:
    run_recipe(settings(tmp_path, llm_folder, VLLM, "out"))
    assert files(tmp_path / "out") == files(expected)


def test_answers_to_a_seed_do_not_depend_on_other_requests(engine: VLLMEngine) -> None:
    requests = [Request(question(n), replace(GREEDY, temperature=1.0), n) for n in range(12)]
    answers = generate_all(engine, requests)
    assert generate_all(engine, requests[::-1]) == answers[::-1]
    assert generate_all(engine, requests[5:6]) == answers[5:6]
    other = generate_all(engine, [replace(requests[5], seed=99)])
    assert other != answers[5:6]


def question(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": "what is this? " * (number % 5) + str(number)}]


def test_an_answer_arrives_before_longer_ones_and_makes_room_for_the_next_request(engine: VLLMEngine) -> None:
    arrived = []

    async def ask(number: int, tokens: int) -> None:
        answer = await engine.generate(Request(question(number), replace(GREEDY, max_new_tokens=tokens), 0))
        arrived.append((number, answer.new_tokens))

    async def chain() -> None:
        for number in range(1, 7):
            await ask(number, 3)

    async def both() -> None:
        await asyncio.gather(ask(0, 300), chain())
        await engine.close()

    forever = [*engine.end_ids]
    engine.end_ids.clear()  # every answer has its full length
    try:
        asyncio.run(both())
    finally:
        engine.end_ids += forever
    assert [number for number, _ in arrived] == [1, 2, 3, 4, 5, 6, 0]


def test_prompts_that_begin_alike_are_read_from_the_prefix_cache(
    engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached, step = {}, engine.llm.llm_engine.step

    def spy() -> Any:
        outputs = step()
        cached.update({output.request_id: output.num_cached_tokens for output in outputs})
        return outputs

    monkeypatch.setattr(engine.llm.llm_engine, "step", spy)
    engine.llm.reset_prefix_cache()
    long = "the same words " * 20
    requests = [
        Request([{"role": "user", "content": f"{long}{n}"}], replace(GREEDY, max_new_tokens=2), 0) for n in "ab"
    ]
    for request in requests:
        generate_all(engine, [request])
    assert len(cached) == 2 and list(cached.values())[0] == 0 and list(cached.values())[1] > len(long) / 2


def test_a_request_that_vllm_refuses_has_an_error_and_the_others_their_answers(
    engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "context", 10**6)  # so that vLLM itself must refuse
    requests = [Request(question(n), GREEDY, 0) for n in range(3)]
    requests.insert(1, Request([{"role": "user", "content": "x" * 2 * CONTEXT}], GREEDY, 0))
    answers = generate_all(engine, requests)
    assert "vLLM refuses" in answers[1].error and str(CONTEXT) in answers[1].error
    assert [answer.error for answer in answers if answer is not answers[1]] == [None] * 3


def test_a_cancelled_request_leaves_vllm(engine: VLLMEngine) -> None:
    async def cancel() -> None:
        long = [asyncio.create_task(engine.generate(Request(question(n), GREEDY, 0))) for n in range(8)]
        await asyncio.sleep(0.05)
        for task in long[1:]:
            task.cancel()
        await long[0]
        await engine.close()

    asyncio.run(cancel())
    assert engine.llm.llm_engine.get_num_unfinished_requests() == 0 and not engine._running


def test_tokens_are_counted_while_answers_are_in_progress(engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    before, counted, own = engine.new_tokens, [], engine._scheduler.advance

    def advance(jobs: Any) -> Any:
        ended = own(jobs)
        counted.append((len(ended), engine.new_tokens - before))
        return ended

    monkeypatch.setattr(engine._scheduler, "advance", advance)
    answers = generate_all(engine, [Request(question(n), replace(GREEDY, max_new_tokens=60), 0) for n in range(2)])
    assert engine.new_tokens - before == sum(answer.new_tokens for answer in answers)
    assert any(not ended and tokens for ended, tokens in counted)


def test_a_run_that_vllm_ends_resumes_to_the_same_rows(
    shared: VLLMEngine, llm_folder: Path, expected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, steps, step = settings(tmp_path, llm_folder, VLLM, "out"), iter(range(60)), shared.llm.llm_engine.step

    def failing() -> Any:
        if next(steps, None) is None:
            raise RuntimeError("out of blocks")
        return step()

    with monkeypatch.context() as patch:
        patch.setattr(shared.llm.llm_engine, "step", failing)
        with pytest.raises(EngineError, match="out of blocks"):
            run_recipe(recipe)
    folder = RecipeFolder(tmp_path / "out")
    assert 0 < settled(folder) < 2 * CLIPS and not folder.finished
    assert shared.llm.llm_engine.get_num_unfinished_requests() == 0
    run_recipe(recipe)
    assert files(tmp_path / "out") == files(expected)


def settled(folder: RecipeFolder) -> int:
    """Rows in the journals and in finished shards."""
    return sum(len(path.read_bytes().splitlines()) for path in folder.shards.glob("0*") if path.suffix != ".lock")


def test_wrong_arguments_of_vllm_end_the_start_with_their_name(llm_folder: Path) -> None:
    with pytest.raises((ConfigError, TypeError, ValueError), match="no_such_argument"):
        build_engine({**VLLM, "engine_args": {"no_such_argument": 1}}, str(llm_folder))


RUN = """
import json, sys
from nemo_desta.recipes.run import run_recipe
if __name__ == "__main__":  # vLLM's process imports this module again
    print(run_recipe(json.loads(sys.argv[1])))
"""


def test_the_death_of_vllms_process_ends_the_run_with_its_reason_and_keeps_the_rows(
    llm_folder: Path, tmp_path: Path, one_process: None
) -> None:
    """As by the system for lack of memory. vLLM's own ``step`` would wait for ever."""
    (tmp_path / "run.py").write_text(RUN)
    recipe = settings(tmp_path, llm_folder, VLLM, "out")
    long = {**recipe["request"], "sampling": {"max_new_tokens": 400, "temperature": 0.0}}
    command = [sys.executable, str(tmp_path / "run.py"), json.dumps({**recipe, "request": long})]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    log = tmp_path / "log"
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
def server(llm_folder: Path, tmp_path: Path, one_process: None) -> Iterator[str]:
    """The address of vLLM's own server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(llm_folder),
        "--enforce-eager",
    ]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    log = tmp_path / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen([*command, "--max-num-seqs", "4"], stdout=out, stderr=subprocess.STDOUT)
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
    run_recipe({**settings(tmp_path, llm_folder, engine, "out"), "llm": "tiny"})
    # The server names its folder as revision and says no number format; the one error is in its words.
    other = ("llm_revision", "llm_dtype", "detail")
    assert files(tmp_path / "out", other) == files(expected, other)
