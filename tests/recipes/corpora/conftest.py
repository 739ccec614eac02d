"""Tiny replicas of corpora: a folder tree with real file names, texts as given, and some milliseconds of noise."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import soundfile


@pytest.fixture
def replica(tmp_path: Path) -> Callable[[Mapping[str, str | bytes | float]], Path]:
    """``replica({path: content})`` writes a data root: text, bytes, or audio of so many seconds."""

    def write(files: Mapping[str, str | bytes | float]) -> Path:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                path.write_text(content, encoding="utf-8")
            elif isinstance(content, bytes):
                path.write_bytes(content)
            else:
                samples = np.random.default_rng(0).uniform(-0.5, 0.5, round(content * 16000))
                soundfile.write(path, samples, 16000)
        return tmp_path

    return write
