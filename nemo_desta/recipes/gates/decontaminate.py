"""Decontamination: rejects clips of benchmarks, which must not be in the training data.

Benchmarks name their items in different ways. A clip is an item if a list contains its id, its audio file or its
recording, with or without folder and file type.
"""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from nemo_desta.recipes.items import Rejection

#: Fields of a clip that are compared with the lists; ``audio`` also as file name and without its file type.
CLIP_FIELDS = ("id", "audio", "group", "recording_id", "recording", "source_id")
#: Default fields of a list; the first of them that it has is read.
LIST_FIELDS = ("id", "audio_id", "audio", "audio_path", "file_name", "filename", "path", "recording_id")

#: A shorter file name ("1", "007") is ambiguous without its folder.
_SHORTEST_STEM = 4
_AUDIO_TYPES = frozenset(".wav .flac .ogg .oga .opus .mp3 .m4a .aac .aif .aiff .wma .webm .mp4 .sph".split())


class Decontamination:
    """``lists``: files of benchmark items: ``.txt`` (one per line), ``.csv``, ``.tsv`` or ``.jsonl``.

    Tables and JSON are read at ``field``, or at the first of `LIST_FIELDS`. A mapping ``{"path": ..., "field": ...}``
    gives a list its own field. Case does not matter.

    Raises ``FileNotFoundError`` for a missing list, ``ValueError`` with ``file:line`` for one that is empty, not
    UTF-8, or without the field.
    """

    def __init__(
        self, lists: Sequence[str | os.PathLike[str] | Mapping[str, Any]], *, field: str | None = None
    ) -> None:
        self._items: dict[str, str] = {}  # name -> the list that has it
        for entry in lists:
            given = entry if isinstance(entry, Mapping) else {"path": entry}
            path, found = Path(given["path"]), False
            for item in _read(path, given.get("field", field)):
                found = True
                for name in _names(item, is_path=_looks_like_path(item)):
                    self._items.setdefault(name, path.name)
            if not found:
                raise ValueError(f"{path}: no benchmark items in it; expected one per line or per row")

    def __len__(self) -> int:
        """Number of names in the lists."""
        return len(self._items)

    def check(self, clip: Mapping[str, Any]) -> Rejection | None:
        """``benchmark item`` if a list contains the clip."""
        for field in CLIP_FIELDS:
            value = clip.get(field)
            if value is None:
                continue
            for name in _names(str(value), is_path=field == "audio" or _looks_like_path(str(value))):
                if name in self._items:
                    return Rejection("benchmark item", f"{field} {value!r} is in {self._items[name]}")
        return None


def _names(item: str, *, is_path: bool) -> Iterator[str]:
    """The spellings of an item that are compared."""
    item = item.strip().replace("\\", "/").casefold()
    yield item
    if is_path:
        path = PurePosixPath(item)
        stem = path.stem if path.suffix in _AUDIO_TYPES else path.name
        if len(stem) >= _SHORTEST_STEM:
            yield stem
        elif path.parent.name:
            yield f"{path.parent.name}/{stem}"


def _looks_like_path(item: str) -> bool:
    return "/" in item or "\\" in item or PurePosixPath(item.strip().casefold()).suffix in _AUDIO_TYPES


def _read(path: Path, field: str | None) -> Iterator[str]:
    if not path.is_file():
        raise FileNotFoundError(f"benchmark list {path} does not exist")
    kind, kinds = path.suffix.lower(), (".csv", ".tsv", ".jsonl", ".txt")
    if kind not in kinds:
        raise ValueError(f"{path}: a benchmark list is one of {', '.join(kinds)}, found {kind or 'no file type'!r}")
    if kind in (".csv", ".tsv"):
        rows = csv.DictReader((line for _, line in _lines(path)), delimiter="\t" if kind == ".tsv" else ",")
        for row in rows:
            yield _value(row, field, f"{path}:{rows.line_num}")
        return
    for number, line in _lines(path):
        if not (item := line.strip()):
            continue
        if kind == ".jsonl":
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: not JSON ({error.msg} at character {error.pos})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: expected one JSON object per line, found a {type(row).__name__}")
            item = _value(row, field, f"{path}:{number}")
        yield item


def _value(row: Mapping[str, Any], field: str | None, where: str) -> str:
    for name in LIST_FIELDS if field is None else (field,):
        if isinstance(value := row.get(name), (str, int)) and not isinstance(value, bool) and str(value).strip():
            return str(value)
    wanted = f"field {field!r}" if field else f"none of the fields {', '.join(LIST_FIELDS)}; name the one to read"
    raise ValueError(f"{where}: {'no ' if field else ''}{wanted}; it has {', '.join(map(str, row)) or 'nothing'}")


def _lines(path: Path) -> Iterable[tuple[int, str]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start})") from None
