"""Spoken questions, with and without their passage, and ALARM's filters."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from nemo_desta.errors import ConfigError
from nemo_desta.recipes.engines.base import Generation, Request
from nemo_desta.recipes.gates import GatesConfig, RowGates
from nemo_desta.recipes.run import run_recipe
from nemo_desta.recipes.settings import parse_recipe
from nemo_desta.recipes.spoken import misheard

ASKED: list[str] = []


class Answers:
    """An engine that notes what it is asked and answers in words."""

    name, revision, concurrency, prompts = "own", None, 4, None

    def __init__(self, llm: str) -> None:
        pass

    async def generate(self, request: Request) -> Generation:
        (message,) = request.messages
        ASKED.append(message["content"])
        return Generation("It is quite a large one, I think.", False, None, 3, 5)

    async def close(self) -> None:
        pass


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = []
    for name, attributes in {
        "both": {"passage": "A tree stands here.\nIt is old.", "heard": "how tall is a tree"},
        "alone": {},
        "wrong": {"heard": "what on earth has he been saying"},
        "mute": {},
        "long": {},
    }.items():
        samples = np.random.default_rng(0).uniform(-0.5, 0.5, 3000)
        soundfile.write(tmp_path / f"{name}.wav", samples, 1000 if name == "long" else 16000)
        row = {"id": name, "audio": f"{name}.wav", "domain": "speech", "attributes": attributes, "split": "train"}
        rows.append({**row, **({} if name == "mute" else {"transcript": "How tall is the tree?"})})
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def settings(root: Path, **more: Any) -> dict[str, Any]:
    base = {"corpus": "q.jsonl", "data_root": str(root), "llm": "own", "engine": {"_target_": f"{__name__}.Answers"}}
    base |= {"prompts": "spoken", "prompts_per_clip": 2, "max_wer": 0.5, "audio": {"max_secs": 2.0}}
    base |= {"request": {"template": "{prompt}\n{description}"}, "gates": {"leak": None, "grounded": None}}
    return {**base, "output": str(root / "out"), "progress": False, "report": False, **more}


def test_a_question_is_answered_with_its_passage_and_alone(questions: Path) -> None:
    ASKED.clear()
    summary = run_recipe(settings(questions))
    question, passage = "How tall is the tree?", "A tree stands here.\nIt is old."
    assert sorted(ASKED) == sorted([f"{passage}\n{question}", question, question])
    files = (questions / "out/rows").glob("*.jsonl")
    rows = {row["id"]: row for file in files for row in map(json.loads, file.open())}
    content = {name: row["messages"][0]["content"] for name, row in rows.items()}
    assert content == {"both-p0": f"<|AUDIO|>\n{passage}", "both-p1": "<|AUDIO|>", "alone-p0": "<|AUDIO|>"}
    assert all(row["seed_description"] == question and row["prompt_kind"] == "spoken" for row in rows.values())
    assert rows["both-p0"]["messages"][0]["audios"][0]["text"] == question
    reasons = {"misheard": 2, "no question": 2, "long audio": 2, "no fitting prompt": 1}
    rejected = [json.loads(line) for file in (questions / "out/rejected").glob("*.jsonl") for line in file.open()]
    assert {reason: sum(reason in json.dumps(row) for row in rejected) for reason in reasons} == reasons, summary


def test_words_are_compared_without_case_and_marks() -> None:
    def clip(asked: str, heard: str | None) -> dict[str, Any]:
        return {"transcript": asked, "attributes": {} if heard is None else {"heard": heard}}

    assert misheard(clip("How tall, IS it?", "how tall is it"), 0.0) is None
    assert misheard(clip("one two three four", "one three"), 0.5) is None
    assert "3 word errors in 4 words" in misheard(clip("one two three four", "four"), 0.5).detail
    assert misheard(clip("a b", "x y z"), None) is None and misheard(clip("a b", None), 0.5) is None
    assert misheard(clip("?", None), None).reason == "no question"


def test_contradicting_settings_are_refused(questions: Path) -> None:
    with pytest.raises(ConfigError, match="not rephrased"):
        parse_recipe(settings(questions, rephrase={"enabled": True}))
    with pytest.raises(ConfigError, match="one or two rows per clip"):
        parse_recipe(settings(questions, prompts_per_clip=3))
    with pytest.raises(ConfigError, match=r"target_tokens must be \[least, most\] tokens, found \[9, 3\]"):
        parse_recipe(settings(questions, gates={"target_tokens": [9, 3]}))


def test_targets_outside_alarms_lengths_are_rejected() -> None:
    gates = RowGates(
        GatesConfig(target_tokens=[3, 5], loops=None, leak=None), count_tokens=lambda text: len(text.split())
    )

    def verdict(response: str) -> str | None:
        row = {"id": "a", "response": response, "prompt": "What?", "messages": [], "truncated": True}
        found = gates.check(row)
        return found and f"{found.reason}: {found.detail}"

    assert verdict("I hear rain.") is None and verdict("It rains</think>\n\nI hear rain.") is None
    assert verdict("Rain falls.") == "too short: 2 tokens, expected at least 3"
    assert verdict("I hear rain and then I hear wind.") == "too long: 8 tokens, expected at most 5"
    assert {"too short", "too long"} <= gates.regenerable
    with pytest.raises(ConfigError, match="needs the LLM's tokenizer"):
        RowGates(GatesConfig(target_tokens=[3, 5]))
