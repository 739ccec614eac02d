"""The recipes' engine `vllm` on the real vLLM, on a CPU in float32, against the engine of transformers."""

import asyncio
import gc
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import recipes_pipeline
from benchmarks.vllm_throughput import measure
from nemo_desta.answering.sampling import Sampling
from nemo_desta.recipes.engines import EngineError, Request, SamplingConfig, VLLMEngine, build_engine, generate_all
from nemo_desta.recipes.engines.scheduler import Job
from nemo_desta.recipes.pipeline import RecipeFolder
from nemo_desta.recipes.run import run_recipe
from tests.vllm_plugin.recipes.conftest import CLIPS, CONTEXT, VLLM, files, settings, settled

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

GREEDY = SamplingConfig(24, temperature=0.0)


@pytest.fixture(scope="module")
def engine(llm_folder: Path) -> Iterator[VLLMEngine]:
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


def question(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": "what is this? " * (number % 5) + str(number)}]


def test_rows_equal_those_of_transformers_and_one_prompt_beyond_the_context_is_one_rejected_row(
    shared: VLLMEngine, llm_folder: Path, expected: Path, tmp_path: Path
) -> None:
    run_recipe(settings(tmp_path, llm_folder, VLLM))
    assert files(tmp_path / "out") == files(expected)


def test_answers_to_a_seed_do_not_depend_on_other_requests(engine: VLLMEngine) -> None:
    requests = [Request(question(n), replace(GREEDY, temperature=1.0), n) for n in range(12)]
    answers = generate_all(engine, requests)
    assert generate_all(engine, requests[::-1]) == answers[::-1]
    assert generate_all(engine, requests[5:6]) == answers[5:6]
    assert generate_all(engine, [replace(requests[5], seed=99)]) != answers[5:6]


def test_settings_of_a_request_reach_vllm(engine: VLLMEngine) -> None:
    given = engine.params(Job([1], Sampling(7, 0.5, 0.9, 12, seed=3)))
    assert (given.max_tokens, given.temperature, given.top_p, given.top_k, given.seed) == (7, 0.5, 0.9, 12, 3)
    assert (given.min_p, given.repetition_penalty, given.stop_token_ids) == (0.0, 1.0, engine.end_ids)


def test_generation_config_of_the_llm_decides_where_turns_end_and_how_it_likes_to_be_sampled(
    engine: VLLMEngine, llm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, started = shutil.copytree(llm_folder, tmp_path / "llm"), []
    monkeypatch.setattr("vllm.LLM", lambda **given: (started.append(given), engine.llm)[1])
    end = engine.tokenizer.convert_tokens_to_ids("<|im_end|>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, 5]}))
    knobs = {"tensor_parallel_size": 2, "engine_args": {"enforce_eager": True}, "window": 64}
    other = build_engine({"name": "vllm", **knobs}, str(folder))
    assert (other.end_ids, other.concurrency, other.dtype) == ([end, 5], 64, "float32")
    assert started == [{"model": str(folder), "stream_interval": 16, "tensor_parallel_size": 2, "enforce_eager": True}]
    (folder / "generation_config.json").unlink()
    assert VLLMEngine.from_pretrained(str(folder)).end_ids == [end]
    monkeypatch.setattr(engine.llm, "default_sampling_params", {"temperature": 0.6, "top_p": 0.95, "top_k": 20})
    assert other.own_sampling() == {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0}


def test_an_answer_arrives_before_longer_ones_and_makes_room_for_the_next_request(
    engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived = []

    async def ask(number: int, tokens: int) -> None:
        await engine.generate(Request(question(number), replace(GREEDY, max_new_tokens=tokens), 0))
        arrived.append(number)

    async def chain() -> None:
        for number in range(1, 7):
            await ask(number, 3)

    async def both() -> None:
        await asyncio.gather(ask(0, 300), chain())
        await engine.close()

    params = engine.params
    monkeypatch.setattr(engine, "params", lambda job: full_length(params(job)))
    asyncio.run(both())
    assert arrived == [1, 2, 3, 4, 5, 6, 0]


def full_length(params: Any) -> Any:
    params.ignore_eos, params.stop_token_ids = True, []
    return params


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
    for end in "ab":
        generate_all(
            engine, [Request([{"role": "user", "content": long + end}], replace(GREEDY, max_new_tokens=2), 0)]
        )
    first, second = cached.values()
    assert first == 0 and second > len(long) / 2


def test_a_request_that_vllm_refuses_has_an_error_and_the_others_their_answers(
    engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "context", 10**6)  # so that vLLM itself must refuse
    requests = [Request(question(n), GREEDY, 0) for n in range(3)]
    requests.insert(1, Request([{"role": "user", "content": "x" * 2 * CONTEXT}], GREEDY, 0))
    answers = generate_all(engine, requests)
    assert "vLLM refuses" in answers[1].error and str(CONTEXT) in answers[1].error
    assert [answer.error for answer in answers if answer is not answers[1]] == [None] * 3


def test_a_request_that_vllm_gives_up_has_an_error(engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    step = engine.llm.llm_engine.step

    def failing() -> Any:
        outputs = step()
        for output in outputs:
            if output.finished:
                output.outputs[0].finish_reason = "error"
        return outputs

    monkeypatch.setattr(engine.llm.llm_engine, "step", failing)
    [answer] = generate_all(engine, [Request(question(0), GREEDY, 0)])
    assert "error" in answer.error and not answer.text


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
    recipe, steps, step = settings(tmp_path, llm_folder, VLLM), iter(range(60)), shared.llm.llm_engine.step

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


def test_the_benchmark_gives_vllm_the_requests_of_the_recipe(
    engine: VLLMEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes_pipeline, "FILES", 2)
    recipes_pipeline.make_corpus(tmp_path / "corpus", 4)
    found = measure(engine, tmp_path, max_new_tokens=8, rounds=1)
    (recipe, *_), (alone, *_) = found["tokens, seconds, cpu_seconds"].values()
    assert recipe == alone > 8 and found["ratio"] > 0
