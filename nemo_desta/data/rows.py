"""The row: one training example on disk (DeSTA-AQA's format), and reading it.

    {"id", "dataset", "seed_description", "prompt", "response",
     "messages": [{"role", "content", "audios": [{"audio": path, "text": transcript or null, "duration": seconds}]}]}

With ``duration`` (optional) training need not open every audio file to plan its batches. ``truncated: true``: the
response was cut by a length limit. Provenance (``llm``, ``prompt_id``, ``seed``, ``stage``, ...) is kept but never
read. `nemo_desta.data.row_schema` checks rows.
"""

import glob
import json
import os
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from nemo_desta.data.packed import open_plain
from nemo_desta.data.remote import is_url, local_copy
from nemo_desta.data.row_schema import TRAINING, Row, RowRules, check_row
from nemo_desta.errors import ConfigError, RowError, row_guard

#: Limit of a row's length; a file without line ends would be one line.
MAX_ROW_BYTES = 64 << 20
_DATASET = re.compile(rb'(?<!\\)"dataset"\s*:\s*("(?:[^"\\]|\\.)*")')


def read_rows(paths: str | Path | Iterable[str | Path]) -> Iterator[Row]:
    """Every row of one or several JSONL files (patterns allowed), checked.

    Raises:
        RowError: the first bad row, named by file and line. FileNotFoundError: a pattern without files.
    """
    index = JsonlIndex(paths)
    yield from map(index.row, range(len(index)))


def parse_row(line: bytes | str, where: str, rules: RowRules = TRAINING) -> Row:
    """One JSON line to a checked row.

    Raises:
        RowError: not JSON, or not a row; the message starts with ``where``.
    """
    try:
        with row_guard():
            return check_row(load_object(line), rules)
    except RowError as error:
        raise RowError(error.reason, f"{where}: {error}") from error


def load_object(line: bytes | str) -> Row:
    """The JSON object of a line, checked to be encodable as UTF-8.

    Raises:
        RowError: ``not_json``, ``schema`` (another kind of JSON), or ``too_big``.
    """
    if len(line) > MAX_ROW_BYTES:
        raise RowError("too_big", f"a line of {len(line):,} bytes; a row has at most {MAX_ROW_BYTES:,}")
    try:
        text = line if isinstance(line, str) else line.decode("utf-8-sig")
        row = json.loads(text)
        if "\\u" in text or isinstance(line, str):
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RowError("not_json", "not a JSON object (it holds half a surrogate pair, which is no text)") from error
    except RecursionError as error:
        raise RowError("not_json", "not a JSON object of a row (nested too deeply)") from error
    except ValueError as error:
        raise RowError("not_json", f"not a JSON object ({error})") from error
    if not isinstance(row, dict):
        raise RowError("schema", f"a row is a JSON object, found {type(row).__name__}")
    return row


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
    """The files of paths, ``{000..127}`` or ``{a,b}`` patterns (also NeMo's ``_OP_0..127_CL_``) and globs, in order;
    for URLs, their copies on this machine (`local_copy`).

    Raises:
        FileNotFoundError: a pattern without files. ConfigError: it names a folder, or a pipe or device, on which
        reading could block, or a URL that cannot be read.
    """
    paths: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, (str, Path)) else patterns:
        for one in expand_braces(pattern):
            if is_url(one):
                paths.append(local_copy(one))
                continue
            found = [one] if os.path.isfile(one) else sorted(glob.glob(one, recursive=True))
            if not found:
                raise FileNotFoundError(f"no file matches '{one}' (from '{pattern}')")
            if odd := next((path for path in found if not os.path.isfile(path)), None):
                kind = "a folder" if os.path.isdir(odd) else "a pipe, a device or a socket"
                raise ConfigError(f"'{odd}' (from '{pattern}') is {kind}; rows are read from files")
            paths += map(Path, found)
    return paths


def expand_braces(pattern: str | Path) -> list[str]:
    """The names that a pattern's ``{000..127}``, ``{a,b}`` and ``_OP_0..127_CL_`` stand for."""
    return _expand_braces(str(pattern).replace("_OP_", "{").replace("_CL_", "}"))


class JsonlIndex:
    """Random access to the lines of JSONL files through their byte offsets (12 bytes of memory per row).

    Gzip and zstd files are unpacked into temporary files, which are deleted with the index (`open_plain`).
    ``datasets``: only lines whose first key ``dataset`` has one of these values.

    Raises:
        ConfigError: no file, or no row of ``datasets``.
    """

    def __init__(
        self,
        paths: str | Path | Iterable[str | Path],
        rules: RowRules = TRAINING,
        datasets: Iterable[str] | None = None,
    ) -> None:
        self.paths = expand_paths(paths)
        if not self.paths:
            raise ConfigError("no row file is given: the list of files is empty")
        self.rules = rules
        self._offsets = array("q")
        self._lines = array("L")
        self._starts = [0]  # first row of each file, and the total
        self._sizes: list[int] = []
        self._files: dict[int, BinaryIO] = {}
        self._datasets = None if datasets is None else frozenset(datasets)
        self._others: set[str] = set()
        self._ends = array("q") if datasets is not None else None  # lines that are left out lie between the others
        for number in range(len(self.paths)):
            self._scan(number)
            self._starts.append(len(self._offsets))
        if self._datasets is not None and not self._offsets:
            raise ConfigError(
                f"no row of {', '.join(sorted(self._datasets))} in {self.paths[0]} (datasets); there are rows of: "
                f"{', '.join(sorted(self._others)[:60]) or 'no dataset'}"
            )

    def __len__(self) -> int:
        return len(self._offsets)

    def row(self, i: int) -> Row:
        """The checked row ``i``.

        Raises:
            RowError: named by file and line.
        """
        with row_guard(self.where(i)):
            return parse_row(self.line(i), self.where(i), self.rules)

    def line(self, i: int) -> bytes:
        """Raw line ``i``; safe in forked workers (positioned reads share no cursor)."""
        file = self._file_of(i)
        is_last = i + 1 == self._starts[file + 1]
        if file not in self._files:
            self._files[file] = open_plain(self.paths[file])
        end = self._ends[i] if self._ends is not None else self._sizes[file] if is_last else self._offsets[i + 1]
        return os.pread(self._files[file].fileno(), end - self._offsets[i], self._offsets[i])

    def where(self, i: int) -> str:
        """``file:line`` of row ``i``, lines counted from 1."""
        return f"{self.paths[self._file_of(i)]}:{self._lines[i]}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def _file_of(self, i: int) -> int:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        return bisect_right(self._starts, i, hi=len(self.paths)) - 1

    def _scan(self, file: int) -> None:
        """Find the lines, at most a megabyte at a time, so that a file without line ends does not fill the memory."""
        stream = open_plain(self.paths[file])
        offset, number, begins, kept = 0, 1, True, False
        while piece := stream.readline(1 << 20):
            if begins and (kept := not piece.isspace() and self._wanted(piece)):
                self._offsets.append(offset)
                self._lines.append(number)
            offset += len(piece)
            begins = piece.endswith(b"\n")
            number += begins
            if kept and begins and self._ends is not None:
                self._ends.append(offset)
        if kept and not begins and self._ends is not None:
            self._ends.append(offset)
        self._sizes.append(offset)
        self._files[file] = stream

    def _wanted(self, line: bytes) -> bool:
        """Whether a line (its first megabyte) is of ``datasets``."""
        if self._datasets is None:
            return True
        found = _DATASET.search(line)
        try:
            name = json.loads(found[1]) if found else ""
        except ValueError:
            return False
        if name not in self._datasets and len(self._others) < 1000:
            self._others.add(name)
        return name in self._datasets


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
