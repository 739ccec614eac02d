"""The local engine: answers do not depend on their batch, are raw, and say when they were cut."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from nemo_desta.recipes.engines import HFEngine, Sampling, _RowSampler

CONVERSATIONS = [[{"role": "user", "content": "what is this? " * n}] for n in (1, 5, 2, 9, 3, 4, 1)]


@pytest.fixture(scope="module")
def engine(llm_folder: Path) -> HFEngine:
    return HFEngine.from_pretrained(str(llm_folder), batch_size=4)


def test_greedy_answers_are_the_argmax_of_the_bare_llm(engine: HFEngine) -> None:
    answers = engine.generate(CONVERSATIONS, Sampling(max_new_tokens=12, temperature=0.0))
    for messages, answer in zip(CONVERSATIONS, answers, strict=True):
        text = f"<|im_start|>user\n{messages[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
        ids = engine.tokenizer(text, add_special_tokens=False)["input_ids"]
        start = len(ids)
        with torch.no_grad():
            while len(ids) < start + 12:
                ids.append(int(engine.model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert answer.text == engine.tokenizer.decode(ids[start:]) and answer.truncated


def test_generation_config_of_the_llm_changes_nothing(engine: HFEngine) -> None:
    sampling = Sampling(max_new_tokens=24, temperature=0.0)
    before = engine.generate(CONVERSATIONS, sampling)
    own = engine.model.generation_config
    own.update(repetition_penalty=5.0, no_repeat_ngram_size=2, do_sample=True, temperature=0.6, top_k=3)
    assert engine.generate(CONVERSATIONS, sampling) == before
    assert engine.model.generation_config is own


def test_sampled_answers_follow_from_their_seeds_however_they_are_batched(llm_folder: Path) -> None:
    seeds = [3, 1, 4, 1, 5, 9, 3]
    sampling = Sampling(max_new_tokens=24, temperature=1.0)
    together = HFEngine.from_pretrained(str(llm_folder), batch_size=4).generate(CONVERSATIONS, sampling, seeds)
    single = HFEngine.from_pretrained(str(llm_folder), batch_size=1)
    for messages, seed, answer in zip(CONVERSATIONS, seeds, together, strict=True):
        assert single.generate([messages], sampling, [seed]) == [answer]
    assert together[0] == together[6] and len({answer.text for answer in together}) == 6


def test_answers_are_raw_and_say_when_they_were_cut(engine: HFEngine) -> None:
    conversations = [CONVERSATIONS[0]] * 64
    answers = engine.generate(conversations, Sampling(max_new_tokens=40, temperature=1.0))
    ended = [answer for answer in answers if not answer.truncated]
    assert 0 < len(ended) < 64
    assert all(len(engine.tokenizer(answer.text)["input_ids"]) < 40 for answer in ended)
    assert all(len(engine.tokenizer(a.text)["input_ids"]) == 40 for a in answers if a.truncated)
    assert not any("<|im_end|>" in answer.text for answer in answers)
    assert any("</think>" in answer.text for answer in answers)


def test_row_sampler_draws_from_the_distribution() -> None:
    probs = torch.tensor([0.5, 0.1, 0.3, 0.1])
    rows = 4000

    def shares(**options: float) -> list[float]:
        sampler = _RowSampler(Sampling(max_new_tokens=1, **options), list(range(rows)), prompt_width=3)
        chosen = sampler(torch.zeros(rows, 3), probs.log().expand(rows, 4)).argmax(-1).tolist()
        return [Counter(chosen)[i] / rows for i in range(4)]

    assert shares(temperature=1.0) == pytest.approx([0.5, 0.1, 0.3, 0.1], abs=0.03)
    assert shares(temperature=0.5) == pytest.approx([0.25 / 0.36, 0.01 / 0.36, 0.09 / 0.36, 0.01 / 0.36], abs=0.03)
    assert shares(temperature=1.0, top_p=0.75) == pytest.approx([0.625, 0, 0.375, 0], abs=0.03)
    assert shares(temperature=1.0, top_p=0.5) == [1, 0, 0, 0]


def test_prompt_longer_than_the_context_is_an_error_of_its_row(engine: HFEngine) -> None:
    long = [{"role": "user", "content": "x" * 600}]
    answers = engine.generate([CONVERSATIONS[0], long], Sampling(max_new_tokens=4, temperature=0.0))
    assert answers[0].error is None and len(answers[0].text) >= 4
    assert answers[1].text == "" and "context leaves 508" in answers[1].error


def test_missing_tokenizer_or_template_is_named(llm_folder: Path, tmp_path: Path, engine: HFEngine) -> None:
    for file in llm_folder.iterdir():
        if not file.name.startswith(("tokenizer", "chat_template")):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        HFEngine.from_pretrained(str(tmp_path))
    template, engine.tokenizer.chat_template = engine.tokenizer.chat_template, None
    with pytest.raises(ValueError, match="'toy' has no chat template"):
        HFEngine(engine.model, engine.tokenizer, name="toy")
    engine.tokenizer.chat_template = template


def test_end_of_turn_comes_from_the_template_when_nothing_else_names_it(llm_folder: Path) -> None:
    known = HFEngine.from_pretrained(str(llm_folder))
    known.tokenizer.eos_token = "<think>"
    known.model.generation_config.eos_token_id = [5, 6]
    end = known.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<think>"])
    assert HFEngine(known.model, known.tokenizer, name="toy").end_ids == [*end, 5, 6]


def test_engine_is_named_after_its_folder_not_its_place(engine: HFEngine) -> None:
    assert engine.name == "tiny-qwen3"
