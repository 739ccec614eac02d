"""Every mutated row is used or named, nothing is raised, and nothing is answered twice.

FUZZ_FILES says how many files of ten mutants are tried; the figures are printed (pytest -s).
"""

import json
import os
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from nemo_desta.answering.offline import answer_rows
from nemo_desta.config import TranscriptConfig
from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.data.costs import RowCosts
from nemo_desta.data.dataset import FILLER_ID, RowDataset
from nemo_desta.data.row_schema import RowRules
from nemo_desta.data.row_source import WeightedSource
from nemo_desta.data.sampler import BatchPlan, PlanSettings
from nemo_desta.data.sources import JsonlSource
from nemo_desta.testing.data import tiny_row, tiny_tokenizer, write_tone
from tests.fuzz.mutants import fuzzed, mutant
from tests.serving.serving_tools import noise, tiny_model

NUM_FILES = int(os.environ.get("FUZZ_FILES", "120"))
LINES_PER_FILE = 10


def audio_folder(folder: Path) -> Path:
    """Two clips, and what is none."""
    for number in (0, 1):
        write_tone(folder / f"{number}.wav", 0.2 + 0.1 * number)
    (folder / "x.raw").write_bytes(bytes(100))
    (folder / "empty.wav").write_bytes(b"")
    soundfile.write(folder / "whole.flac", noise(0.5), 16_000)
    (folder / "cut.flac").write_bytes((folder / "whole.flac").read_bytes()[:3000])
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    return folder


def training_rows() -> list[dict]:
    one, timed, two = (tiny_row(f"row-{i}", f"{i % 2}.wav", text="a tone") for i in range(3))
    timed["messages"][-1]["audios"][0]["duration"] = 0.3
    two["messages"][-1]["audios"].append({"audio": "1.wav", "text": None})
    two["messages"][-1]["content"] += " <|AUDIO|>"
    turns = [{"role": "assistant", "content": "A tone."}, {"role": "user", "content": "Sure?"}]
    two["messages"] += turns
    return [one, {**timed, "truncated": True}, two, tiny_row("text", None)]


def short_rows() -> list[dict]:
    return [
        {"id": "one", "audio": "0.wav", "prompt": "What?"},
        {"id": "two", "audio": ["0.wav", "1.wav"], "text": ["a", None], "prompt": "What?", "system": "Be brief."},
        {"id": 3, "prompt": "Hello?", "audio": None},
    ]


def write_lines(folder: Path, lines: list[bytes]) -> tuple[Path, int]:
    """The file, and how many lines of it are not blank."""
    data = b"".join(line + b"\n" for line in lines)
    (folder / "rows.jsonl").write_bytes(data)
    return folder / "rows.jsonl", sum(bool(line.strip()) for line in data.split(b"\n"))


def report(name: str, figures: Counter) -> None:
    tried, used = figures.pop("tried"), figures.pop("used")
    print(f"\n{name}: {tried} tried, {used} used, {figures.total()} named, 0 crashed; {dict(figures.most_common())}")


@pytest.mark.slow
def test_every_training_row_is_used_or_named(tmp_path: Path) -> None:
    audio = audio_folder(tmp_path)
    prompts = [
        PromptBuilder(tiny_tokenizer(kind), transcript=TranscriptConfig(True)) for kind in ("chatml", "thinking")
    ]
    good = json.dumps(tiny_row("good", "0.wav")).encode()  # a file without any good row is refused as a whole
    figures: Counter = Counter()

    @fuzzed(NUM_FILES)
    @given(
        lines=st.lists(mutant(training_rows()), min_size=LINES_PER_FILE, max_size=LINES_PER_FILE),
        builder=st.sampled_from(prompts),
        text_tokens=st.sampled_from(["exact", "estimate"]),
        strict_keys=st.sampled_from([None, False]),
    )
    def all_of_them(lines: list[bytes], builder: PromptBuilder, text_tokens: str, strict_keys: bool | None) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path, num_lines = write_lines(Path(folder), [*lines, good])
            source = JsonlSource(path, {"default": audio}, rules=RowRules(strict_keys))
            costs = RowCosts(
                [source],
                builder,
                lambda n: n // 1600,
                sampling_rate=16_000,
                max_row_tokens=2000,
                text_tokens=text_tokens,
            )
            plan = BatchPlan([WeightedSource(source, None)], costs.tokens, PlanSettings(4000))
            dataset = RowDataset([source], builder, sampling_rate=16_000, seed=0)
            used, named = [], []
            for planned in plan.batches(0):
                batch = dataset[planned]
                used += [name for name in batch["row_ids"] if name != FILLER_ID]
                named += batch["bad_rows"]
        assert len(used) + len(named) == num_lines
        assert all(bad["id"] and bad["where"].startswith(str(path)) and bad["reason"] for bad in named)
        assert len({bad["where"] for bad in named}) == len(named)
        json.dumps(named, ensure_ascii=False).encode()  # what bad_rows.jsonl is written with
        figures.update({"tried": num_lines - 1, "used": len(used) - 1})
        figures.update(bad["reason"] for bad in named)

    all_of_them()
    assert figures["tried"] >= 0.9 * NUM_FILES * LINES_PER_FILE
    report("training rows", figures)


@pytest.mark.slow
def test_every_row_to_be_answered_is_answered_once_or_named(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    audio, model = audio_folder(tmp_path / "audio"), tiny_model(tmp_path / "model")
    figures: Counter = Counter()

    def answered(path: Path, strict_keys: bool | None) -> tuple:
        summary = answer_rows(
            model,
            path,
            path.with_name("answers.jsonl"),
            name="tiny",
            audio_roots=audio,
            sampling={"max_new_tokens": 1, "temperature": 0.0},
            strict_keys=strict_keys,
            progress=False,
        )
        lines = path.with_name("answers.jsonl").read_bytes().splitlines()
        rejects = summary.rejects.read_bytes().splitlines() if summary.rejects.exists() else []
        return summary, [json.loads(line) for line in lines], [json.loads(line) for line in rejects]

    @fuzzed(NUM_FILES)
    @given(
        lines=st.lists(mutant(short_rows() + training_rows()), min_size=LINES_PER_FILE, max_size=LINES_PER_FILE),
        strict_keys=st.sampled_from([None, False]),
    )
    def all_of_them(lines: list[bytes], strict_keys: bool | None) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path, num_lines = write_lines(Path(folder), lines)
            first, answers, named = answered(path, strict_keys)
            again, all_answers, _ = answered(path, strict_keys)
        assert len(answers) == first.answered and len(named) == first.rejected.total()
        assert first.answered + first.rejected.total() == num_lines
        assert len({row["id"] for row in answers}) == len(answers)
        assert all(bad["where"].startswith(str(path)) and bad["reason"] and bad["detail"] for bad in named)
        assert (again.answered, again.before, all_answers) == (0, first.answered, answers)
        figures.update({"tried": num_lines, "used": first.answered, **first.rejected})

    all_of_them()
    assert figures["tried"] >= 0.9 * NUM_FILES * LINES_PER_FILE
    report("rows to be answered", figures)
