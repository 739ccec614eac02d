"""The local engine: answers do not depend on their batch, are raw, and say when they were cut."""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from nemo_desta.answering.sampling import Drawer, Sampling, draw, own_sampling
from nemo_desta.errors import ConfigError
from nemo_desta.recipes.engines import EngineError, Generation, HFEngine, Request, SamplingConfig, generate_all

CONVERSATIONS = [[{"role": "user", "content": "what is this? " * n}] for n in (1, 5, 2, 9, 3, 4, 1)]
GREEDY = SamplingConfig(max_new_tokens=12, temperature=0.0)


def ask(
    engine: HFEngine,
    sampling: SamplingConfig,
    seeds: Sequence[int] = range(7),
    conversations: Sequence[Any] = CONVERSATIONS,
) -> list[Generation]:
    return generate_all(engine, [Request(m, sampling, s) for m, s in zip(conversations, seeds, strict=True)])


@pytest.fixture(scope="module")
def engine(llm_folder: Path) -> HFEngine:
    return HFEngine.from_pretrained(str(llm_folder), batch_size=4)


def greedy_ids(engine: HFEngine, text: str, count: int) -> list[int]:
    """The likeliest tokens, one by one, without cache or padding."""
    ids = engine.tokenizer(text, add_special_tokens=False)["input_ids"]
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(engine.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-count:]


def test_greedy_answers_are_the_argmax_of_the_bare_llm(engine: HFEngine) -> None:
    for messages, answer in zip(CONVERSATIONS, ask(engine, GREEDY), strict=True):
        text = f"<|im_start|>user\n{messages[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
        assert answer.text == engine.tokenizer.decode(greedy_ids(engine, text, 12)) and answer.truncated
        assert answer.new_tokens == 12 and answer.prompt_tokens == len(engine.tokenizer(text)["input_ids"])


def test_tokens_are_counted_before_a_row_has_ended(llm_folder: Path) -> None:
    engine = HFEngine.from_pretrained(str(llm_folder), batch_size=4)
    found = []

    def advance(jobs: Any) -> Any:
        ended = own(jobs)
        found.append((len(ended), engine.new_tokens))
        return ended

    own, engine._scheduler.advance = engine._scheduler.advance, advance
    answers = ask(engine, replace(GREEDY, max_new_tokens=12), range(4), CONVERSATIONS[:4])
    assert found == [(0, 32), (4, 48)]  # 8 tokens of each row, then 4
    assert engine.new_tokens == sum(answer.new_tokens for answer in answers) == 48


def test_prefix_is_continued_and_not_repeated(engine: HFEngine) -> None:
    request = Request(CONVERSATIONS[0], GREEDY, 0, prefix="<think>\nwell")
    text = engine.prompts.render(CONVERSATIONS[0]) + "<think>\nwell"
    assert generate_all(engine, [request])[0].text == engine.tokenizer.decode(greedy_ids(engine, text, 12))


def test_generation_config_of_the_llm_changes_nothing_when_the_sampling_is_given(engine: HFEngine) -> None:
    sampling = SamplingConfig(max_new_tokens=24, temperature=0.0)
    before = ask(engine, sampling)
    own = engine.model.generation_config
    kept = own.to_dict()
    own.update(repetition_penalty=5.0, no_repeat_ngram_size=2, do_sample=True, temperature=0.6, top_k=3)
    try:
        assert ask(engine, sampling) == before
        assert engine.model.generation_config is own
    finally:
        own.update(**kept)


def test_sampled_answers_follow_from_their_seeds_however_they_are_batched(llm_folder: Path) -> None:
    seeds = [3, 1, 4, 1, 5, 9, 3]
    sampling = SamplingConfig(max_new_tokens=24, temperature=1.0)
    together = ask(HFEngine.from_pretrained(str(llm_folder), batch_size=4), sampling, seeds)
    single = HFEngine.from_pretrained(str(llm_folder), batch_size=1)
    for messages, seed, answer in zip(CONVERSATIONS, seeds, together, strict=True):
        assert ask(single, sampling, [seed], [messages]) == [answer]
    assert together[0] == together[6] and len({answer.text for answer in together}) == 6


def test_mixed_samplings_and_limits_in_one_queue_equal_separate_runs(engine: HFEngine) -> None:
    own = engine.model.generation_config
    kept = own.to_dict()
    own.update(do_sample=True, temperature=0.7, top_k=5, top_p=0.9)
    try:
        samplings = [GREEDY, SamplingConfig(15, 1.0), SamplingConfig(9, None), SamplingConfig(15, 1.0, top_k=3)]
        requests = [Request(m, s, 7) for m in CONVERSATIONS[:3] for s in samplings]
        mixed = generate_all(engine, requests)
        assert mixed == [generate_all(engine, [request])[0] for request in requests]
        assert {answer.new_tokens for answer in mixed if answer.truncated} == {9, 12, 15}
    finally:
        own.update(**kept)


def test_no_temperature_means_the_llms_own_generation_config() -> None:
    def own(**config: Any) -> Sampling:
        return Sampling(**own_sampling(GenerationConfig(**config)))

    assert own() == Sampling(temperature=0.0)
    config = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.1}
    assert own(**config) == Sampling(temperature=0.6, top_p=0.95, top_k=20, min_p=0.1)
    fallback = Sampling(temperature=1.0, top_p=1.0, top_k=50, min_p=0.0)
    assert own(do_sample=True) == fallback  # transformers' own


def test_own_config_that_does_not_sample_gives_the_likeliest_answer(engine: HFEngine) -> None:
    assert engine.model.generation_config.do_sample in (False, None)
    assert ask(engine, replace(GREEDY, temperature=None)) == ask(engine, GREEDY)


def test_answers_are_raw_and_say_when_they_were_cut(engine: HFEngine) -> None:
    wide = HFEngine(engine.model, engine.tokenizer, name="toy", batch_size=64)
    answers = ask(wide, SamplingConfig(max_new_tokens=40, temperature=1.0), range(64), [CONVERSATIONS[0]] * 64)
    ended = [answer for answer in answers if not answer.truncated]
    assert 0 < len(ended) < 64
    assert all(len(engine.tokenizer(a.text)["input_ids"]) + 1 == a.new_tokens <= 40 for a in ended)
    assert all(len(engine.tokenizer(a.text)["input_ids"]) == a.new_tokens == 40 for a in answers if a.truncated)
    assert not any("<|im_end|>" in answer.text for answer in answers)
    assert any("</think>" in answer.text for answer in answers)


def test_rows_are_drawn_from_the_distribution() -> None:
    probs = torch.tensor([0.5, 0.1, 0.3, 0.1])
    rows = 4000

    def shares(temperature: float, **options: Any) -> list[float]:
        drawers = [Drawer(Sampling(temperature=temperature, seed=seed, **options)) for seed in range(rows)]
        chosen = draw(probs.log().expand(rows, 4), drawers, [[]] * rows)
        return [Counter(chosen)[i] / rows for i in range(4)]

    assert shares(1.0) == pytest.approx([0.5, 0.1, 0.3, 0.1], abs=0.03)
    assert shares(0.5) == pytest.approx([0.25 / 0.36, 0.01 / 0.36, 0.09 / 0.36, 0.01 / 0.36], abs=0.03)
    assert shares(1.0, top_p=0.75) == pytest.approx([0.625, 0, 0.375, 0], abs=0.03)
    assert shares(1.0, top_p=0.5) == [1, 0, 0, 0]
    assert shares(1.0, top_k=2) == pytest.approx([0.625, 0, 0.375, 0], abs=0.03)
    assert shares(1.0, top_k=2, top_p=0.6) == [1, 0, 0, 0]  # of the two that top-k leaves, one holds 0.625
    assert shares(1.0, min_p=0.5) == pytest.approx([0.625, 0, 0.375, 0], abs=0.03)


def test_rows_join_a_running_batch_and_cancelled_ones_leave_it(
    llm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = HFEngine.from_pretrained(str(llm_folder), batch_size=4)
    limits = [40, 3, 3, 3, 40, 3, 3]
    requests = [
        Request(m, SamplingConfig(limit, temperature=0.0), 0) for m, limit in zip(CONVERSATIONS, limits, strict=True)
    ]
    expected = [generate_all(engine, [request])[0] for request in requests]
    prompts, rows, forward = [], [], engine.model.forward

    def counted(**inputs: Any) -> Any:
        count, width = inputs["input_ids"].shape
        (prompts if width > 1 else rows).append(count)
        return forward(**inputs)

    monkeypatch.setattr(engine.model, "forward", counted)
    assert generate_all(engine, requests) == expected
    assert prompts == [4, 3] and max(rows) == 4
    assert len(rows) < 50, "two rows of 40 tokens take few more steps than one"

    async def cancelled() -> Generation:
        tasks = [asyncio.create_task(engine.generate(requests[i])) for i in (0, 4)]
        while len(rows) < 4:
            await asyncio.sleep(0.001)
        tasks[0].cancel()
        return await tasks[1]

    rows.clear()
    assert asyncio.run(cancelled()) == expected[4]
    assert rows[0] == 2 and rows[-1] == 1
    asyncio.run(engine.close())
    assert not len(engine._decoder)


def test_prompt_longer_than_the_context_is_an_error_of_its_row(engine: HFEngine) -> None:
    long = [{"role": "user", "content": "x" * 600}]
    answers = ask(engine, SamplingConfig(max_new_tokens=4, temperature=0.0), [0, 0], [CONVERSATIONS[0], long])
    assert answers[0].error is None and len(answers[0].text) >= 4
    assert answers[1].text == "" and "context leaves 508" in answers[1].error


def test_messages_that_the_template_refuses_are_an_error_of_their_row(llm_folder: Path) -> None:
    strict = HFEngine.from_pretrained(str(llm_folder))
    strict.tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    assert "no system role" in ask(strict, GREEDY, [0], CONVERSATIONS[:1])[0].error


def test_one_engine_serves_several_event_loops_one_after_the_other(engine: HFEngine) -> None:
    request = Request(CONVERSATIONS[1], GREEDY, 0)
    answers = [asyncio.run(engine.generate(request)) for _ in range(3)]  # never closed in between
    assert answers[0] == answers[1] == answers[2] == generate_all(engine, [request])[0]


class Cramped:
    """A model whose memory holds ``room`` tokens (rows x longest). ``sizes``: rows of each batch of prompts."""

    def __init__(self, engine: HFEngine, room: int) -> None:
        self.forward, self.room, self.sizes = engine.model.forward, room, []

    def __call__(self, **inputs: Any) -> Any:
        rows, width = inputs["input_ids"].shape
        if width > 1:
            self.sizes.append(rows)
            if rows * (width + 12) > self.room:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return self.forward(**inputs)


def test_out_of_memory_halves_the_batch_and_says_so(
    llm_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = HFEngine.from_pretrained(str(llm_folder), batch_size=8)
    conversations = [[{"role": "user", "content": "x" * 20}]] * 32
    expected = ask(engine, GREEDY, range(32), conversations)
    longest = expected[0].prompt_tokens + 12
    cramped = Cramped(engine, room=3 * longest)
    monkeypatch.setattr(engine.model, "forward", cramped)
    with caplog.at_level(logging.WARNING):
        assert ask(engine, GREEDY, range(32), conversations) == expected
    assert cramped.sizes[:3] == [8, 4, 2] and set(cramped.sizes[3:]) == {2}  # learnt, not tried again
    assert "8 answers" in caplog.text and "trying 4" in caplog.text


def test_row_that_fits_no_memory_is_an_error_of_its_own(llm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = HFEngine.from_pretrained(str(llm_folder), batch_size=4)
    conversations = [[{"role": "user", "content": "x" * n}] for n in (200, 3, 3)]
    monkeypatch.setattr(engine.model, "forward", Cramped(engine, room=150))
    answers = ask(engine, GREEDY, [0] * 3, conversations)
    assert "do not fit the GPU's memory: CUDA out of memory" in answers[0].error
    assert [answer.error for answer in answers[1:]] == [None, None]


def test_exception_in_the_model_reaches_every_caller(llm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = HFEngine.from_pretrained(str(llm_folder), batch_size=4)

    def broken(**inputs: Any) -> None:
        raise RuntimeError("device-side assert triggered")

    monkeypatch.setattr(engine.model, "forward", broken)

    async def outcomes() -> list[Any]:
        requests = [Request(m, GREEDY, 0) for m in CONVERSATIONS]
        return await asyncio.gather(*map(engine.generate, requests), return_exceptions=True)

    found = asyncio.run(outcomes())
    assert len(found) == 7 and all(isinstance(error, EngineError) for error in found)
    assert "RuntimeError: device-side assert triggered" in str(found[0])
    assert isinstance(found[0].__cause__, RuntimeError)


def test_revision_follows_from_the_folders_contents_alone(llm_folder: Path, tmp_path: Path) -> None:
    revision = HFEngine.from_pretrained(str(llm_folder)).revision
    copy = tmp_path / "other-name"
    copy.mkdir()
    for file in llm_folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert len(revision) == 12 and HFEngine.from_pretrained(str(copy)).revision == revision
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert HFEngine.from_pretrained(str(copy)).revision != revision


def test_missing_tokenizer_or_template_or_dtype_is_named(llm_folder: Path, tmp_path: Path, engine: HFEngine) -> None:
    for file in llm_folder.iterdir():
        if not file.name.startswith(("tokenizer", "chat_template")):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        HFEngine.from_pretrained(str(tmp_path))
    template, engine.tokenizer.chat_template = engine.tokenizer.chat_template, None
    with pytest.raises(ValueError, match="'toy' has no chat template"):
        HFEngine(engine.model, engine.tokenizer, name="toy")
    engine.tokenizer.chat_template = template
    with pytest.raises(ConfigError, match="Did you mean 'bfloat16'"):
        HFEngine.from_pretrained(str(llm_folder), dtype="bf16")


def test_end_of_turn_comes_from_the_template_when_nothing_else_names_it(llm_folder: Path) -> None:
    known = HFEngine.from_pretrained(str(llm_folder))
    known.tokenizer.eos_token = "<think>"
    known.model.generation_config.eos_token_id = [5, 6]
    end = known.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<think>"])
    assert HFEngine(known.model, known.tokenizer, name="toy").end_ids == [*end, 5, 6]


def test_engine_is_named_after_its_folder_not_its_place(engine: HFEngine) -> None:
    assert engine.name == "tiny-qwen3" and engine.concurrency == 64
