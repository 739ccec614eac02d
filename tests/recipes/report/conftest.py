"""A recipe's output folder in small: 40 rows with clips, 4 rejected ones, a summary."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile


def make_row(number: int, **changes: Any) -> dict[str, Any]:
    """Row ``number``: two rows ask about each clip, in one dialect after the other."""
    clip = number // 2
    gender = "female" if clip % 2 else "male"
    attributes = f"Gender: {gender}, Duration: 2s" if number % 2 else f"duration: 2s, gender: {gender}"
    prompt = "Who speaks?" if number % 2 else "Describe the clip."
    row = {
        "id": f"c{clip}-p{number % 2}",
        "dataset": "birds" if clip < 5 else "voices",
        "seed_description": f"[00:00-00:02] word {clip} ({attributes})",
        "prompt": prompt,
        "messages": [
            {
                "role": "user",
                "content": f"<|AUDIO|>\n{prompt}",
                "audios": [{"audio": f"audio/c{clip}.wav", "text": f"word {clip}", "duration": 1.5}],
            }
        ],
        "response": f"Somebody says word {clip}, number {number}.",
        "truncated": False,
        "stage": "self_generate",
        "prompt_kind": "describe" if number % 2 == 0 else "attribute",
        "split": "train" if clip < 15 else "valid",
        "group": f"speaker {clip}",
        "llm": "tiny",
    }
    return {**row, **changes}


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as JSONL at a path below the test's folder."""

    def write(name: str, rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def folder(tmp_path: Path, write_rows: Callable[..., Path]) -> Path:
    """The folder; audio paths start from it, too."""
    rows = [make_row(number) for number in range(40)]
    for split in ("train", "valid"):
        write_rows(f"rows/{split}-00000.jsonl", [row for row in rows if row["split"] == split])
    rejected = [
        {"id": f"r{i}", "reason": "leak" if i else "empty", "detail": f"detail {i}", "row": make_row(i) if i else None}
        for i in range(4)
    ]
    write_rows("rejected/train-00000.jsonl", rejected)
    summary = {"rows": {"train": 30, "valid": 10}, "written": 40, "rejected": {"leak": 3, "empty": 1}}
    summary |= {"attempts": 50, "prompt_tokens": 4000, "new_tokens": 1000, "seconds": 20.0}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "recipe.json").write_text(json.dumps({"recipe": "generate", "llm": "tiny"}))
    (tmp_path / "audio").mkdir()
    for clip in range(20):
        soundfile.write(tmp_path / f"audio/c{clip}.wav", np.sin(np.arange(12_000) / 9), 8000)
    return tmp_path
