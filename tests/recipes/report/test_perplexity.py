"""Target perplexity equals a plain loop over tokens, whatever the batch size, and tells own from foreign targets."""

import json
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.errors import RowError
from nemo_desta.recipes.report.perplexity import target_perplexity, text_messages
from nemo_desta.sources import resolve_source

DEMO = "package:demo/assets/llm"


def row(number: int, response: str, **changes: Any) -> dict[str, Any]:
    prompt = "Who speaks?" + "?" * (number % 5)
    message = {"role": "user", "content": f"<|AUDIO|>\n{prompt}", "audios": [{"audio": "a.wav", "text": None}]}
    given = {
        "id": f"r{number}",
        "dataset": "ab"[number % 2],
        "seed_description": f"[00:00-00:01] {number} (Gender: x)",
    }
    given |= {"prompt": prompt, "messages": [message], "response": response, "stage": "self_generate", "llm": "tiny"}
    return {**given, **changes}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    made = [row(i, "word " * (1 + 7 * i % 11) + ".", truncated=i % 3 == 0) for i in range(13)]
    made[4]["messages"].insert(0, {"role": "system", "content": "Be brief."})
    return made


def by_hand(folder: Path, rows: list[dict[str, Any]]) -> list[tuple[float, int]]:
    """(nats, tokens) of each row: one forward pass per row, one token after the other."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for one in rows:
        system = [m for m in one["messages"] if m["role"] == "system"]
        chat = [*system, {"role": "user", "content": f"{one['seed_description']}\n{one['prompt']}"}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        target = tokenizer(one["response"], add_special_tokens=False)["input_ids"]
        target += [] if one.get("truncated") else [tokenizer.convert_tokens_to_ids("<|im_end|>")]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + target])).logits[0]
        nats = 0.0
        for i, token in enumerate(target):
            nats -= logits[len(prompt) + i - 1].log_softmax(-1)[token].item()
        found.append((nats, len(target)))
    return found


@pytest.mark.parametrize("batch_size", [1, 8])
def test_it_equals_a_plain_loop(tmp_path: Path, llm_folder: Path, rows: list[dict[str, Any]], batch_size: int) -> None:
    expected = by_hand(llm_folder, rows)
    path = write(tmp_path / "rows.jsonl", rows)
    found = target_perplexity(path, str(llm_folder), dtype="float32", batch_size=batch_size, progress=False).own
    nll = sum(nats for nats, _ in expected) / sum(tokens for _, tokens in expected)
    assert found.total.tokens == sum(tokens for _, tokens in expected)
    assert found.total.nll == pytest.approx(nll, abs=1e-5)
    assert found.total.perplexity == pytest.approx(exp(nll), rel=1e-5)
    each = sorted(nats / tokens for nats, tokens in expected)
    assert found.total.median_row_nll == pytest.approx(each[6], abs=1e-5)
    inside = [pair for one, pair in zip(rows, expected, strict=True) if one["dataset"] == "a"]
    assert found.by_corpus["a"].nll == pytest.approx(sum(n for n, _ in inside) / sum(t for _, t in inside), abs=1e-5)


def test_batch_size_changes_nothing(tmp_path: Path, llm_folder: Path, rows: list[dict[str, Any]]) -> None:
    path = write(tmp_path / "rows.jsonl", rows)
    one, eight = (
        target_perplexity(path, str(llm_folder), dtype="float32", batch_size=size, progress=False).own
        for size in (1, 8)
    )
    assert one.total.nll == pytest.approx(eight.total.nll, abs=1e-5)
    assert one.total.median_row_nll == pytest.approx(eight.total.median_row_nll, abs=1e-5)


def test_own_greedy_answers_are_near_one_and_chatty_ones_far(tmp_path: Path) -> None:
    folder = resolve_source(DEMO)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = PromptBuilder(AutoTokenizer.from_pretrained(folder))
    own, chatty = [], []
    for i, (gender, word) in enumerate([("male", "seven"), ("female", "two"), ("male", "nine")]):
        description = f"[00:00-00:01] {word} (Gender: {gender}, Duration: 1s)"
        made = row(i, "", prompt="What is the gender of the speaker?", seed_description=description)
        made["messages"][0]["content"] = "<|AUDIO|>\nWhat is the gender of the speaker?"
        ids = prompts.tokenize(prompts.render(text_messages(made)))
        end = prompts.end_of_turn_id
        new = model.generate(
            torch.tensor([ids]), max_new_tokens=30, do_sample=False, eos_token_id=end, pad_token_id=end
        )
        answer = prompts.tokenizer.decode(new[0, len(ids) :], skip_special_tokens=True)
        assert gender in answer
        own.append({**made, "response": answer})
        chatty.append({**made, "response": f"Sure, happy to help! {answer} Is there anything else?", "llm": "chatty"})
    found = target_perplexity(
        write(tmp_path / "own.jsonl", own),
        DEMO,
        others={"chatty": write(tmp_path / "c.jsonl", chatty)},
        progress=False,
    )
    assert found.own.total.perplexity < 1.05
    assert found.others["chatty"].total.perplexity > 10
    assert set(found.others["chatty"].by_llm) == {"chatty"}
    assert "chatty" in str(found) and found.to_json()["own"]["total"]["rows"] == 3


def test_a_seeded_draw_of_rows_is_scored(tmp_path: Path, llm_folder: Path, rows: list[dict[str, Any]]) -> None:
    path = write(tmp_path / "rows.jsonl", rows)
    first, again, other = (
        target_perplexity(path, str(llm_folder), max_rows=5, seed=seed, progress=False).own.total for seed in (0, 0, 1)
    )
    assert first.rows == 5 and first == again and first != other


def test_rows_that_cannot_be_scored_are_counted(tmp_path: Path, llm_folder: Path) -> None:
    bad = [row(1, "x", seed_description=None), row(2, "x" * 600), row(3, "good")]
    bad[0].pop("seed_description")
    found = target_perplexity(write(tmp_path / "rows.jsonl", bad), str(llm_folder), progress=False).own
    assert found.total.rows == 1
    assert found.skipped == {"no seed description": 1, "longer than the context": 1}
    with pytest.raises(ValueError, match="none of 1 rows could be scored"):
        target_perplexity(write(tmp_path / "bad.jsonl", bad[:1]), str(llm_folder), progress=False)


def test_the_description_takes_the_place_of_the_audio() -> None:
    one = row(0, "x")
    assert text_messages(one) == [{"role": "user", "content": "[00:00-00:01] 0 (Gender: x)\nWho speaks?"}]
    one["messages"] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Listen. <|AUDIO|>", "audios": [{"audio": "a.wav"}]},
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": "And now?"},
    ]
    assert [m["content"] for m in text_messages(one)] == [
        "Be brief.",
        "[00:00-00:01] 0 (Gender: x)\nListen. ",
        "Done.",
        "And now?",
    ]
    with pytest.raises(RowError, match="no seed_description"):
        text_messages({**one, "seed_description": " "})
