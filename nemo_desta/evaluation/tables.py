"""Reads tables of rows as benchmarks publish them: JSON, JSON Lines, CSV, parquet (also with embedded audio)."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]
EXTRACT_TO = "extracted_audio"


def read_table(path: Path) -> list[Row]:
    """The rows of a file. A JSON object of objects is a table; its keys become the rows' ``file``.

    Audio inside a parquet file is written once to ``extracted_audio`` beside it; the column becomes its path.

    Raises:
        ValueError: the file is no such table; the message names file and line.
    """
    readers = {".json": _json, ".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}
    if path.suffix not in readers:
        raise ValueError(f"{path}: a table of rows ends in {', '.join(readers)}")
    rows = []
    for where, row in readers[path.suffix](path):
        if not isinstance(row, Mapping):
            raise ValueError(f"{where}: a row must be an object, found {type(row).__name__}")
        rows.append(dict(row))
    return rows


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if isinstance(data, dict):
        data = [{"file": key, **row} if isinstance(row, dict) else row for key, row in data.items()]
    if not isinstance(data, list):
        raise ValueError(f"{path}: must hold a list of objects, found {type(data).__name__}")
    for i, row in enumerate(data):
        yield f"{path}, row {i}", row


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield f"{path}:{number}", json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{path}:{number}: not JSON ({error})") from None


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        for i, row in enumerate(csv.DictReader(file)):
            yield f"{path}, row {i}", row


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    from nemo_desta.recipes.corpora.card import ReaderConfig
    from nemo_desta.recipes.corpora.huggingface_reader import HuggingFaceReader

    yield from HuggingFaceReader(ReaderConfig(extract_to=EXTRACT_TO), path.parent).rows(path.name)
