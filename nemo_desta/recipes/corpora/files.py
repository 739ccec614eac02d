"""Files of a corpus: globs in a fixed order, one folder in memory at a time; lines with their numbers; and rows.

Rows of CSV, TSV and JSON lines are in memory one at a time, JSON documents as a whole.
"""

import csv
import gzip
import io
import json
import logging
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeAlias

from nemo_desta.data.packed import Damaged, zstd_blocks
from nemo_desta.recipes.corpora.card_keys import SourceConfig
from nemo_desta.recipes.corpora.errors import CorpusError

#: (``file:row`` for messages, the row's fields, fields from the file's path)
Record: TypeAlias = tuple[str, dict[str, Any], dict[str, Any]]

_BLANKS = re.compile(r"\s*")

#: Errors from a file that cannot be read, or from a packed file that is truncated or damaged.
UNREADABLE = (OSError, EOFError, zlib.error)

logger = logging.getLogger(__name__)


def matching_files(root: Path, glob: str, *, folders: bool = False) -> Iterator[str]:
    """Files below ``root`` that match, relative and with ``/``, sorted folder by folder; with ``folders`` these too.

    ``**`` stands for any number of folders. Wildcards do not match hidden names; links are followed. An absolute path
    (a manifest that the user names) is used as it is.

    Raises ``CorpusError``: nothing matches, or ``..`` in the glob.
    """
    parts = PurePosixPath(glob).parts
    if ".." in parts and not os.path.isabs(glob):
        raise CorpusError(f"reader.files: {glob!r} leaves the data root")
    found = ([glob] if os.path.exists(glob) else []) if os.path.isabs(glob) else _visit(root, "", parts)
    relative = None
    for relative in (path for path in found if folders or (root / path).is_file()):
        yield relative
    if relative is None:
        raise CorpusError(f"no file matches '{glob}' below {root}")


def open_binary(path: Path) -> BinaryIO:
    """The file for reading, unpacked when its name ends in ``.gz`` or ``.zst``. All its errors are `UNREADABLE`."""
    if path.suffix == ".zst":
        return io.BufferedReader(_Zstd(path), 1 << 17)
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line with its end) of a UTF-8 file; ``CorpusError`` with ``file:line`` for other bytes."""
    number = 0
    try:
        with open_binary(path) as file:
            for number, raw in enumerate(file, start=1):
                try:
                    text = raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise CorpusError(f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start})") from None
                yield number, text.removeprefix("\ufeff") if number == 1 else text
    except UNREADABLE as error:
        raise CorpusError(f"{path}:{number + 1}: cannot be read ({error})") from None


def csv_rows(path: Path, source: SourceConfig) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a delimited file as (``file:line``, column -> text)."""
    columns = source.columns
    for where, cells in _cells(path, source):
        if columns is None:
            columns = [cell.strip() for cell in cells]
            if len(set(columns)) < len(columns):
                raise CorpusError(f"{where}: the header names a column twice: {', '.join(columns)}")
            continue
        if len(cells) != len(columns):
            cut = "; is the line cut?" if len(cells) < len(columns) else ""
            raise CorpusError(f"{where}: {len(cells)} columns, expected {len(columns)} ({', '.join(columns)}){cut}")
        yield where, dict(zip(columns, cells, strict=True))


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a JSON lines file as (``file:line``, object); empty lines are skipped."""
    for number, line in lines(path):
        if not (line := line.strip()):
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(f"{where}: not JSON ({error.msg} at character {error.pos}); is the line cut?") from None
        except (ValueError, RecursionError) as error:  # a number of 5,000 digits; nested too deep
            raise CorpusError(f"{where}: not JSON that can be read ({error})") from None
        if not isinstance(row, dict):
            raise CorpusError(f"{where}: expected one JSON object per line, found a {type(row).__name__}")
        yield where, row


def json_entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Entries of one JSON document: a list of objects, or key -> object (``key`` becomes a field)."""
    try:
        with open_binary(path) as file:
            text = file.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except UNREADABLE as error:
        raise CorpusError(f"{path}: cannot be read ({error})") from None
    opening, at = _sign(text, 0)
    if opening not in ("{", "["):
        raise CorpusError(f"{path}: expected a JSON list or an object of objects, found {opening!r}")
    number, closing = 0, "}" if opening == "{" else "]"
    while _sign(text, at)[0] != closing:
        number += 1
        where, keyed = f"{path}:entry {number}", {}
        if number > 1:
            comma, at = _sign(text, at)
            if comma != ",":
                raise CorpusError(f"{where}: expected ',' or '{closing}' after entry {number - 1}; is the file cut?")
        if opening == "{":
            keyed["key"], at = _json_value(text, at, where)
            colon, at = _sign(text, at)
            if colon != ":":
                raise CorpusError(f"{where}: expected ':' after the key {keyed['key']!r}")
        row, at = _json_value(text, at, where)
        if not isinstance(row, dict):
            raise CorpusError(f"{where}: expected an object, found a {type(row).__name__}")
        yield where, {**keyed, **row}


class _Zstd(io.RawIOBase):
    """The content of a zstd file, unpacked as it is read. Raises ``OSError`` if it is no zstd file or truncated."""

    def __init__(self, path: Path):
        self._file = path.open("rb")
        self._blocks = filter(None, zstd_blocks(self._file))
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            self._rest = self._rest or next(self._blocks, b"")
        except Damaged as error:
            raise OSError(str(error)) from None
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _visit(root: Path, folder: str, parts: tuple[str, ...]) -> Iterator[str]:
    first, rest = parts[0], parts[1:]
    found: Iterable[str]
    if first == "**":
        yield from _visit(root, folder, rest or ("*",))
        found, rest = (name for name, is_folder in _entries(root / folder) if is_folder), parts
    elif any(sign in first for sign in "*?["):
        entries = _entries(root / folder)
        found = [name for name, is_folder in entries if fnmatchcase(name, first) and (is_folder or not rest)]
    else:
        found = [first] if (root / folder / first).exists() else []
    for name in found:
        path = f"{folder}/{name}" if folder else name
        yield from _visit(root, path, rest) if rest else (path,)


def _entries(folder: Path) -> list[tuple[str, bool]]:
    """(name, is a folder) of what is not hidden, sorted; nothing for a file."""
    try:
        with os.scandir(folder) as found:
            return sorted((entry.name, entry.is_dir()) for entry in found if not entry.name.startswith("."))
    except NotADirectoryError:
        return []


def _sign(text: str, at: int) -> tuple[str, int]:
    """The next character that is not white space, "" at the end; and the position after it."""
    found = _BLANKS.match(text, at).end()
    return text[found : found + 1], found + 1


def _json_value(text: str, at: int, where: str) -> tuple[Any, int]:
    """The next JSON value, and the position after it."""
    try:
        return json.JSONDecoder().raw_decode(text, _BLANKS.match(text, at).end())
    except json.JSONDecodeError as error:
        raise CorpusError(f"{where}: not JSON ({error.msg}); is the file cut?") from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits; nested too deep
        raise CorpusError(f"{where}: not JSON that can be read ({error})") from None


def _cells(path: Path, source: SourceConfig) -> Iterator[tuple[str, list[str]]]:
    """(``file:line``, cells) of every line that is neither a comment nor empty."""
    delimiter = source.delimiter or ("\t" if source.type == "tsv" else "," if source.columns else None)
    delimiter = delimiter or _found_delimiter(path, source.comment)
    quoted = source.quoted if source.quoted is not None else source.type == "csv" and not source.columns
    if quoted:
        yield from _quoted_cells(path, delimiter, source.comment)
        return
    splits = len(source.columns) - 1 if source.columns else -1
    for where, line in _content(path, source.comment):
        if delimiter == "whitespace":
            cells = line.split(None, splits)
            cells += [""] * (splits + 1 - len(cells)) if len(cells) == splits else []  # the last may be empty
        else:
            cells = line.split(delimiter, splits)
        yield where, cells if splits < 0 else [cell.strip() for cell in cells]


def _content(path: Path, comment: str | None) -> Iterator[tuple[str, str]]:
    """(``file:line``, line without its end) of every line that is neither a comment nor empty."""
    for number, line in lines(path):
        if line.strip() and not (comment and line.startswith(comment)):
            yield f"{path}:{number}", line.rstrip("\r\n")


def _found_delimiter(path: Path, comment: str | None) -> str:
    """The delimiter that gives the most columns in a csv header: comma, semicolon or tab."""
    _, header = next(_content(path, comment), ("", ""))
    best = max(",;\t", key=lambda sign: _num_columns(header, sign))  # the first of equals: a comma
    if best != ",":
        logger.info("%s: columns are separated by %r", path, best)
    return best


def _num_columns(header: str, delimiter: str) -> int:
    try:
        return len(next(csv.reader([header], delimiter=delimiter), []))
    except csv.Error:  # named where the rows are read
        return 0


def _quoted_cells(path: Path, delimiter: str, comment: str | None) -> Iterator[tuple[str, list[str]]]:
    texts = ("\n" if comment and line.startswith(comment) else line for _, line in lines(path))
    reader = csv.reader(texts, delimiter=delimiter, strict=True)
    last = 0
    try:
        for cells in reader:
            if cells:
                yield f"{path}:{last + 1}", cells
            last = reader.line_num
    except csv.Error as error:
        raise CorpusError(f"{path}:{last + 1}: not {delimiter!r}-separated text ({error}); is it cut?") from None
