"""The row: what one training example is on disk (DeSTA-AQA's format), and how it is checked and read.

    {"id", "dataset", "seed_description", "prompt", "response",
     "messages": [{"role", "content", "audios": [{"audio": path, "text": transcript or null, "duration": seconds}]}]}

``duration`` (optional) spares a look into every audio file before training. ``truncated: true`` says that the response
was cut by a length limit. Provenance (``llm``, ``prompt_id``, ``seed``, ``stage``, ...) is carried, never read.
"""

import glob
import json
import math
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class RowError(ValueError):
    """A row that cannot be used. ``reason``: a short fixed word to count by; the message says what to repair."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@contextmanager
def row_guard(where: str = "") -> Iterator[None]:
    """Turn whatever goes wrong with one row into a `RowError`, so that no row can end a run.

    A `RowError` passes unchanged; any other exception (a MemoryError too) becomes one of reason ``unexpected``, which
    names its type, and ``where`` the row stands.
    """
    try:
        yield
    except RowError:
        raise
    except Exception as error:
        detail = f"{type(error).__name__}: {str(error) or 'no message'}"
        raise RowError("unexpected", f"{where}: {detail:.500}" if where else f"{detail:.500}") from error


def read_rows(paths: str | Path | Iterable[str | Path]) -> Iterator[Row]:
    """Every row of one or several JSONL files (patterns allowed), checked.

    Raises:
        RowError: the first bad row, named by file and line. FileNotFoundError: a pattern without files.
    """
    index = JsonlIndex(paths)
    for i in range(len(index)):
        yield index.row(i)


def parse_row(line: bytes | str, where: str) -> Row:
    """One JSON line to a checked row.

    Raises:
        RowError: not JSON, or not a row; the message starts with ``where``.
    """
    try:
        text = line if isinstance(line, str) else line.decode("utf-8-sig")
        row = json.loads(text)
        if "\\u" in text:
            json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but no text
    except (ValueError, RecursionError) as error:
        raise RowError("not_json", f"{where}: not a JSON object ({error})") from error
    try:
        check_row(row)
    except RowError as error:
        raise RowError(error.reason, f"{where}: {error}") from error
    return row


def check_row(row: Any) -> None:
    """Raise `RowError` unless ``row`` has the fields of a row, with the right types."""
    if not isinstance(row, Mapping):
        raise _wrong("a row is a JSON object", row)
    if not _is_text(row.get("id")):
        raise _wrong("'id' must be a non-empty string", row, "id")
    name = f"row '{row['id']}'"
    if not isinstance(row.get("dataset", ""), str):
        raise _wrong(f"{name}: 'dataset' must be a string", row, "dataset")
    if not _is_text(row.get("response")):
        raise _wrong(f"{name}: 'response' must be a non-empty string", row, "response")
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _wrong(f"{name}: 'messages' must be a non-empty list", row, "messages")
    for number, message in enumerate(messages):
        _check_message(message, f"{name}, message {number}")
    if messages[-1]["role"] == "assistant":
        raise RowError(
            "schema", f"{name}: the last message is the assistant's; the answer to learn belongs into 'response'"
        )


def audio_entries(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The row's audio entries in reading order."""
    return [entry for message in row["messages"] for entry in message.get("audios") or ()]


def duplicate_rows(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Ids of rows that repeat an earlier one: same dataset, id and prompt.

    DeSTA-AQA asks several prompts about one clip under one id, so an id alone may repeat.
    """
    seen: set[tuple[str, str, str]] = set()
    repeated = []
    for row in rows:
        key = (row.get("dataset", ""), row["id"], row.get("prompt") or row["messages"][-1]["content"])
        if key in seen:
            repeated.append(row["id"])
        seen.add(key)
    return repeated


def expand_paths(patterns: str | Path | Iterable[str | Path]) -> list[Path]:
    """Files behind paths, ``{000..127}`` or ``{a,b}`` patterns (also NeMo's ``_OP_0..127_CL_``) and globs, in order.

    Raises:
        FileNotFoundError: a pattern that names no file.
    """
    paths: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, (str, Path)) else patterns:
        for one in _expand_braces(str(pattern).replace("_OP_", "{").replace("_CL_", "}")):
            found = [one] if os.path.isfile(one) else sorted(glob.glob(one, recursive=True))
            if not found:
                raise FileNotFoundError(f"no file matches '{one}' (from '{pattern}')")
            paths += map(Path, found)
    return paths


class JsonlIndex:
    """Random access to the lines of JSONL files through their byte offsets (12 bytes of memory per row)."""

    def __init__(self, paths: str | Path | Iterable[str | Path]) -> None:
        self.paths = expand_paths(paths)
        self._offsets = array("q")
        self._lines = array("L")
        self._starts = [0]  # first row of each file, and the total
        self._files: dict[int, int] = {}
        for path in self.paths:
            self._scan(path)
            self._starts.append(len(self._offsets))

    def __len__(self) -> int:
        return len(self._offsets)

    def row(self, i: int) -> Row:
        """The checked row ``i``.

        Raises:
            RowError: named by file and line.
        """
        return parse_row(self.line(i), self.where(i))

    def line(self, i: int) -> bytes:
        """Raw line ``i``; safe in forked workers (positioned reads share no cursor)."""
        file = self._file_of(i)
        is_last = i + 1 == self._starts[file + 1]
        if file not in self._files:
            self._files[file] = os.open(self.paths[file], os.O_RDONLY)
        descriptor = self._files[file]
        end = os.fstat(descriptor).st_size if is_last else self._offsets[i + 1]
        return os.pread(descriptor, end - self._offsets[i], self._offsets[i])

    def where(self, i: int) -> str:
        """``file:line`` of row ``i``, lines counted from 1."""
        return f"{self.paths[self._file_of(i)]}:{self._lines[i]}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def _file_of(self, i: int) -> int:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        low, high = 0, len(self.paths) - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._starts[middle] <= i else (low, middle - 1)
        return low

    def _scan(self, path: Path) -> None:
        offset = 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    self._offsets.append(offset)
                    self._lines.append(number)
                offset += len(line)


def _check_message(message: Any, where: str) -> None:
    if not isinstance(message, Mapping):
        raise _wrong(f"{where}: must be an object", message)
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            raise _wrong(f"{where}: '{key}' must be a string", message, key)
    audios = message.get("audios") or []
    if not isinstance(audios, list):
        raise _wrong(f"{where}: 'audios' must be a list", message, "audios")
    for number, entry in enumerate(audios):
        if not isinstance(entry, Mapping):
            raise _wrong(f"{where}, audio {number}: must be an object", entry)
        if not _is_text(entry.get("audio")):
            raise _wrong(f"{where}, audio {number}: 'audio' must be a path", entry, "audio")
        if not isinstance(entry.get("text"), str | None):
            raise _wrong(f"{where}, audio {number}: 'text' must be a transcript or null", entry, "text")
        duration = entry.get("duration")
        if not isinstance(duration, int | float | None) or not 0 <= (duration or 0) < math.inf:
            raise _wrong(f"{where}, audio {number}: 'duration' must be seconds", entry, "duration")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _wrong(rule: str, found: Any, key: str | None = None) -> RowError:
    """The error of a broken rule: what was found, as a whole or under ``key``."""
    if key is None:
        return RowError("schema", f"{rule}, found {type(found).__name__}")
    return RowError("schema", f"{rule}, " + (f"found {found[key]!r:.80}" if key in found else "but it is missing"))


def _expand_braces(text: str) -> list[str]:
    found = re.search(r"\{([^{}]*)\}", text)
    if found is None:
        return [text]
    body = found.group(1)
    if bounds := re.fullmatch(r"(\d+)\.\.(\d+)", body):
        first, last = bounds.groups()
        width = len(first) if first.startswith("0") else 0
        options = [f"{n:0{width}d}" for n in range(int(first), int(last) + 1)]
    else:
        options = body.split(",")
    return [
        rest for option in options for rest in _expand_braces(text[: found.start()] + option + text[found.end() :])
    ]
