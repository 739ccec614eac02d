"""Self-generation: the rows, the drops, and going on after a kill."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nemo_desta.recipes.corpus import read_corpus
from nemo_desta.recipes.engines import Generation, HFEngine, Messages, Sampling
from nemo_desta.recipes.output import RowFile
from nemo_desta.recipes.prompts import Prompt, starter_prompts
from nemo_desta.recipes.self_generate import Summary, self_generate

PROMPTS = [Prompt("said", "What is said?", requires=("transcript",)), Prompt("who", "Who?", requires=("gender",))]


class Scripted:
    """Answers with a digest of what it was asked; some questions get answers that cannot be used."""

    name = "scripted"

    def __init__(self, delay: float = 0.0, answered: Any = None) -> None:
        self.delay = delay
        self.answered = answered
        self.asked: list[str] = []

    def generate(
        self, conversations: Sequence[Messages], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> list[Generation]:
        time.sleep(self.delay)
        if self.answered is not None:
            self.answered.value += len(conversations)
        self.asked += [messages[0]["content"] for messages in conversations]
        return [self._one(m[0]["content"], seed) for m, seed in zip(conversations, seeds or [], strict=True)]

    def _one(self, question: str, seed: int) -> Generation:
        if "word 5 " in question:
            return Generation("  \n", False)
        if "word 6 " in question:
            return Generation("", False, "prompt of 9 tokens, the context leaves 8")
        if "word 8 " in question:
            return Generation("half a character \ufffd, then more", False)
        return Generation(f"{question[-12:]} {seed}</think> ", "word 9 " in question)


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


def run(corpus: Path, output: str, engine: Any = None, **options: Any) -> tuple[Summary, dict[str, dict[str, Any]]]:
    options = {"prompts_per_clip": 2, "batch_size": 3, "progress": False, **options}
    rows = list(read_corpus(["m.jsonl"], corpus))
    summary = self_generate(rows, PROMPTS, engine or Scripted(), corpus / output, data_root=corpus, **options)
    return summary, rows_of(corpus / output)


def test_rows_are_desta_aqa_rows_with_their_origin(corpus: Path) -> None:
    engine = Scripted()
    _, rows = run(corpus, "out/rows.jsonl", engine)
    for row_id, row in rows.items():
        clip = row_id.split("-")[0]
        text = f"word {clip[1:]}"
        gender = "female" if int(clip[1:]) % 2 else "male"
        prompt = {p.prompt_id: p.prompt for p in PROMPTS}[row["prompt_id"]]
        description = f"[00:00-00:01] {text} (Gender: {gender}, Duration: 1s)"
        assert row == {
            "id": row_id,
            "dataset": "toy",
            "seed_description": description,
            "prompt": prompt,
            "messages": [
                {
                    "role": "user",
                    "content": f"<|AUDIO|>\n{prompt}",
                    "audios": [{"audio": f"audio/{clip}.flac", "text": text}],
                }
            ],
            "response": f"{description}\n{prompt}"[-12:] + f" {row['seed']}</think> ",
            "llm": "scripted",
            "prompt_id": row["prompt_id"],
            "seed": row["seed"],
            "stage": "self_generate",
            "truncated": clip == "c9",
        }
        assert f"{description}\n{prompt}" in engine.asked
    assert {row["prompt_id"] for row in rows.values()} == {"said", "who"}
    assert len({row["seed"] for row in rows.values()}) == len(rows)


def test_what_cannot_be_used_is_counted_and_named_and_not_kept(corpus: Path) -> None:
    summary, rows = run(corpus, "rows.jsonl")
    assert {row_id.split("-")[0] for row_id in rows} == {f"c{i}" for i in (0, 1, 2, 4, 9, 10, 11)}
    assert (summary.written, summary.truncated, summary.already_there) == (14, 2, 0)
    reasons = ["missing audio", "corrupt audio", "empty answer", "LLM error", "answer is not text"]
    assert summary.dropped == dict.fromkeys(reasons, 2)
    text = str(summary)
    assert "rows written: 14 (2 of them truncated)" in text and "rows dropped: 10" in text
    assert "missing audio: 2, such as c3 (no file audio/c3.flac)" in text and "c7 (audio/c7.flac" in text


def test_a_clip_gets_only_prompts_that_its_description_answers(corpus: Path) -> None:
    manifest = corpus / "m.jsonl"
    first = json.loads(manifest.read_text().splitlines()[0])
    manifest.write_text(json.dumps({**first, "transcript": None}) + "\n" + json.dumps({**first, "id": "d"}) + "\n")
    summary, rows = run(corpus, "rows.jsonl")
    assert rows["c0-p0"]["prompt_id"] == "who" and rows["c0-p0"]["messages"][0]["audios"][0]["text"] is None
    assert set(rows) == {"c0-p0", "d-p0", "d-p1"} and summary.dropped == {"no fitting prompt": 1}


def test_second_run_adds_only_what_is_missing(corpus: Path) -> None:
    _, rows = run(corpus, "once.jsonl", prompts_per_clip=1)
    assert all(row_id.endswith("-p0") for row_id in rows)
    engine = Scripted()
    summary, more = run(corpus, "once.jsonl", engine)
    assert summary.already_there == 7 and summary.written == 7 and len(engine.asked) == 7 + 6
    assert {row_id: more[row_id] for row_id in rows} == rows
    assert more == run(corpus, "fresh.jsonl")[1]


def test_seed_changes_draws_and_nothing_else_does(corpus: Path) -> None:
    rows = run(corpus, "a.jsonl", prompts_per_clip=1)[1]
    assert run(corpus, "b.jsonl", prompts_per_clip=1, batch_size=32)[1] == rows
    others = run(corpus, "c.jsonl", prompts_per_clip=1, sampling=Sampling(seed=1))[1]
    assert [r["prompt_id"] for r in others.values()] != [r["prompt_id"] for r in rows.values()]


@pytest.mark.parametrize("cut", [1, 40, 10_000])
def test_half_written_last_row_is_cut_off_and_made_again(corpus: Path, cut: int) -> None:
    rows = run(corpus, "rows.jsonl")[1]
    file = corpus / "rows.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    assert run(corpus, "rows.jsonl")[1] == rows
    assert sorted(file.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_killed_run_loses_one_batch_at_most_and_ends_with_the_same_rows(corpus: Path) -> None:
    manifest = corpus / "m.jsonl"
    good = json.loads(manifest.read_text().splitlines()[0])
    manifest.write_text("".join(json.dumps({**good, "id": f"k{i}"}) + "\n" for i in range(300)))
    expected = run(corpus, "whole.jsonl")[1]
    assert len(expected) == 600
    rng, output = random.Random(0), corpus / "killed.jsonl"
    context, there = multiprocessing.get_context("fork"), 0
    for _ in range(12):
        answered = context.Value("i", 0)
        engine = Scripted(delay=0.004, answered=answered)
        process = context.Process(target=run, args=(corpus, "killed.jsonl", engine))
        process.start()
        until = rng.randint(1, 40)
        while answered.value < until and process.is_alive():
            time.sleep(0.001)
        time.sleep(0.01 * rng.random())
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        before, there = there, len(RowFile(output, readonly=True).ids) if output.exists() else 0
        assert before + answered.value - 3 <= there <= before + answered.value + 3
        if rng.random() < 0.5 and output.exists():  # a write that the kill interrupted midway
            with output.open("ab") as file:
                file.write(b'{"id": "k7-p0", "resp')
    assert 0 < there < 600
    summary, rows = run(corpus, "killed.jsonl")
    assert summary.already_there == there and rows == expected


def test_edited_output_is_named_by_line(corpus: Path) -> None:
    (corpus / "rows.jsonl").write_text('{"id": "c0-p0"}\n{"no": "id"}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: not a row with an id"):
        run(corpus, "rows.jsonl")


def test_without_engine_rows_are_counted_and_nothing_is_written(corpus: Path) -> None:
    rows = list(read_corpus(["m.jsonl"], corpus))
    summary = self_generate(rows, starter_prompts(), None, corpus / "x.jsonl", data_root=corpus, progress=False)
    assert summary.to_write == 10 and not (corpus / "x.jsonl").exists()
    assert "rows to write: 10" in str(summary) and summary.dropped == {"missing audio": 1, "corrupt audio": 1}


def test_real_llm_resumes_to_the_same_rows(corpus: Path, llm_folder: Path) -> None:
    sampling = Sampling(max_new_tokens=8, temperature=1.0, seed=3)
    rows = run(corpus, "a.jsonl", HFEngine.from_pretrained(str(llm_folder)), sampling=sampling)[1]
    assert len(rows) > 15 and len({row["response"] for row in rows.values()}) > 10
    lines = (corpus / "a.jsonl").read_bytes().splitlines(keepends=True)
    (corpus / "b.jsonl").write_bytes(b"".join(lines[::2]))
    assert run(corpus, "b.jsonl", HFEngine.from_pretrained(str(llm_folder)), sampling=sampling)[1] == rows
