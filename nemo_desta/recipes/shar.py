"""Converts rows and their audio to a lhotse shar folder: a few large files instead of millions of small ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_desta.config import MISSING, parse
from nemo_desta.data.shar import write_shar
from nemo_desta.data.sources import JsonlSource
from nemo_desta.recipes.report.sources import find_rows


@dataclass(frozen=True)
class SharConfig:
    """conf/recipes/shar.yaml. ``audio_root``: a folder, or dataset -> folder."""

    rows: str | list[str] = MISSING
    audio_root: str | dict[str, str] = MISSING
    output: str = MISSING
    shard_size: int = 1000
    audio_format: str = "flac"
    progress: bool = True


def run_shar(plain: Mapping[str, Any]) -> str:
    """Write the shar folder; returns a message for the user. Raises ``ConfigError``, ``FileNotFoundError``,
    ``FileExistsError`` (see `parse`, `find_rows`, `write_shar`), and ``RowError`` for the first row that cannot be
    used, by file and line."""
    config = parse(SharConfig, plain, where="shar")
    roots = {"default": config.audio_root} if isinstance(config.audio_root, str) else dict(config.audio_root)
    source = JsonlSource(find_rows(config.rows).rows, roots)
    write_shar(
        source,
        Path(config.output),
        shard_size=config.shard_size,
        audio_format=config.audio_format,
        progress=config.progress,
    )
    return f"{len(source)} rows in {config.output}: give this folder as data.train_ds.input_cfg.0.rows"
