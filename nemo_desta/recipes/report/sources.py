"""Finds files of rows: in a recipe's output folder, in a plain folder, or by paths and patterns."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from nemo_desta.data.packed import open_plain
from nemo_desta.data.rows import expand_paths
from nemo_desta.progress import Progress

Paths = str | Path | Iterable[str | Path]


class Line(NamedTuple):
    """A non-blank line: its number in its file (from 1), its bytes, and whether it has a line end (``whole``)."""

    path: Path
    number: int
    raw: bytes
    whole: bool

    @property
    def where(self) -> str:
        return f"{self.path}:{self.number}"


@dataclass(frozen=True)
class RowsSource:
    """Files to read. ``summary`` and ``recipe``: the run's own JSON files, empty if there are none."""

    name: str
    rows: list[Path]
    rejected: list[Path] = field(default_factory=list)
    summary: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in [*self.rows, *self.rejected])

    @property
    def num_lines(self) -> int:
        """Number of line ends in the files of rows, without parsing."""
        total = 0
        for path in self.rows:
            with open_plain(path) as file:
                while block := file.read(1 << 20):
                    total += block.count(b"\n")
        return total


def find_rows(
    rows: Paths, *, rejected: Paths | None = None, summary: str | Path | Mapping[str, Any] | None = None
) -> RowsSource:
    """Find the files behind ``rows``.

    A recipe's output folder (or its ``rows/``) also gives its ``rejected/``, ``summary.json`` and ``recipe.json``. Any
    other folder gives its ``*.jsonl``. Other values are JSONL files or patterns over them.

    Raises:
        FileNotFoundError: no such folder or file, or a folder without JSONL files.
    """
    home: Path | None = None
    if isinstance(rows, (str, Path)) and Path(rows).is_dir():
        home = Path(rows)
        if home.resolve().name == "rows" and (home.parent / "recipe.json").exists():
            home = home.parent
        inside = home / "rows" if (home / "rows").is_dir() else home
        files = sorted(inside.glob("*.jsonl"))
        if not files:
            raise FileNotFoundError(f"no *.jsonl in {inside}; a recipe's rows appear there when its shards are done")
        name = home.resolve().name
    else:
        files = expand_paths(rows)
        name = files[0].stem if len(files) == 1 else f"{len(files)} files"
    if rejected is not None:
        dropped = expand_paths(rejected)
    else:
        dropped = sorted((home / "rejected").glob("*.jsonl")) if home else []
    noted = summary if isinstance(summary, Mapping) else _json(summary or (home and home / "summary.json"))
    if summary is not None and not noted:
        raise FileNotFoundError(f"no summary in {summary}; it is the JSON object that a recipe writes at its end")
    return RowsSource(name, files, dropped, noted, _json(home and home / "recipe.json"))


def lines(paths: Iterable[Path], bar: Progress) -> Iterator[Line]:
    """Every non-blank line of every file. ``bar`` counts their megabytes."""
    for path in paths:
        with open_plain(path) as file:
            for number, raw in enumerate(file, 1):
                if not raw.isspace():
                    yield Line(path, number, raw, raw.endswith(b"\n"))
                    bar.update(len(raw) / 1e6)


def split_of(row: Mapping[str, Any], path: Path) -> str:
    """The row's split, or the split in its file's name (``train-00000.jsonl``), or ``not said``."""
    said = row.get("split")
    if isinstance(said, str) and said:
        return said
    found = re.match(r"(train|valid|validation|dev|eval|test|all)(?=[-_.])", path.name)
    return found.group(1) if found else "not said"


def _json(path: str | Path | None) -> Mapping[str, Any]:
    """The object in a JSON file; empty if the file is missing or, after a kill, incomplete."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
