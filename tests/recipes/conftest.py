"""A tiny LLM with random weights and a tokenizer of single characters, and a corpus of short noises."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from nemo_desta.testing.data import character_tokenizer
from nemo_desta.testing.models import tiny_llm


@pytest.fixture(scope="session")
def llm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `from_pretrained` reads it: Qwen3 of random weights whose answers are printable characters."""
    folder = tmp_path_factory.mktemp("llm") / "tiny-qwen3"
    # Not the usual 0.02, with which every token is equally likely whatever the prompt.
    untied = {"tie_word_embeddings": False, "initializer_range": 0.2, "max_position_embeddings": 512}
    return tiny_llm(folder, tokenizer=character_tokenizer(), pad_token_id=None, bos_token_id=None, **untied)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A data root with ``m.jsonl``: 12 rows over 10 good clips, ``c3`` without file, ``c7`` cut in half."""
    (tmp_path / "audio").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for i in range(12):
        audio = f"audio/c{i}.flac"
        row = {"id": f"c{i}", "source": "toy", "split": "train", "audio": audio, "duration": 0.3}
        attributes = {"gender": "female" if i % 2 else "male"}
        rows.append({**row, "domain": "speech", "transcript": f"word {i}", "attributes": attributes})
        if i != 3:
            soundfile.write(tmp_path / audio, rng.uniform(-0.5, 0.5, 2400), 8000)
    whole = (tmp_path / "audio/c7.flac").read_bytes()
    (tmp_path / "audio/c7.flac").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path
