"""Metadata files as rows: CSV, TSV and JSON lines with one row in memory at a time, and whole JSON documents."""

import csv
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from nemo_desta.recipes.corpora.card import SourceConfig
from nemo_desta.recipes.corpora.errors import CorpusError
from nemo_desta.recipes.corpora.files import UNREADABLE, lines, open_binary

#: (``file:row`` for messages, the row's fields, fields from the file's path)
Record: TypeAlias = tuple[str, dict[str, Any], dict[str, Any]]

logger = logging.getLogger(__name__)


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
        if line := line.strip():
            yield f"{path}:{number}", _object(line, where=f"{path}:{number}")


def json_entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Entries of one JSON document: a list of objects, or key -> object (``key`` becomes a field)."""
    text = _Document(path)
    opening = text.take()
    if opening not in ("{", "["):
        raise CorpusError(f"{path}: expected a JSON list or an object of objects, found {opening!r}")
    number, closing = 0, "}" if opening == "{" else "]"
    while text.peek() != closing:
        number += 1
        where = f"{path}:entry {number}"
        if number > 1 and text.take() != ",":
            raise CorpusError(f"{where}: expected ',' or '{closing}' after entry {number - 1}; is the file cut?")
        key = text.value(where) if opening == "{" else None
        if opening == "{" and text.take() != ":":
            raise CorpusError(f"{where}: expected ':' after the key {key!r}")
        row = text.value(where)
        if not isinstance(row, dict):
            raise CorpusError(f"{where}: expected an object, found a {type(row).__name__}")
        yield where, row if key is None else {"key": key, **row}


def _cells(path: Path, source: SourceConfig) -> Iterator[tuple[str, list[str]]]:
    """(``file:line``, cells) of every line that is neither a comment nor empty."""
    delimiter = source.delimiter or ("\t" if source.type == "tsv" else _found_delimiter(path, source))
    quoted = source.quoted if source.quoted is not None else source.type == "csv" and not source.columns
    if quoted:
        yield from _quoted_cells(path, delimiter, source.comment)
        return
    splits = len(source.columns) - 1 if source.columns else -1
    for number, line in lines(path):
        line = line.rstrip("\r\n")
        if not line.strip() or (source.comment and line.startswith(source.comment)):
            continue
        where = f"{path}:{number}"
        if delimiter == "whitespace":
            cells = line.split(None, splits)
            cells += [""] * (splits + 1 - len(cells)) if len(cells) == splits else []  # the last may be empty
        else:
            cells = line.split(delimiter, splits)
        yield where, cells if splits < 0 else [cell.strip() for cell in cells]


def _found_delimiter(path: Path, source: SourceConfig) -> str:
    """The delimiter that gives the most columns in a csv header: comma, semicolon or tab."""
    if source.columns:
        return ","
    for _, line in lines(path):
        if line.strip() and not (source.comment and line.startswith(source.comment)):
            counts = {sign: _num_columns(line, sign) for sign in ",;\t"}
            best = max(counts, key=lambda sign: counts[sign])  # the first of equals: a comma
            if best != ",":
                logger.info("%s: columns are separated by %r", path, best)
            return best
    return ","


def _num_columns(header: str, delimiter: str) -> int:
    try:
        return len(next(csv.reader([header], delimiter=delimiter), []))
    except csv.Error:  # named where the rows are read
        return 0


def _quoted_cells(path: Path, delimiter: str, comment: str | None) -> Iterator[tuple[str, list[str]]]:
    def texts() -> Iterator[str]:
        for _, line in lines(path):
            yield "\n" if comment and line.startswith(comment) else line

    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    last = 0
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise CorpusError(f"{path}:{last + 1}: not {delimiter!r}-separated text ({error}); is it cut?") from None
        if cells is None:
            return
        if cells:
            yield f"{path}:{last + 1}", cells
        last = reader.line_num


def _object(line: str, *, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise CorpusError(f"{where}: not JSON ({error.msg} at character {error.pos}); is the line cut?") from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits; nested too deep
        raise CorpusError(f"{where}: not JSON that can be read ({error})") from None
    if not isinstance(row, dict):
        raise CorpusError(f"{where}: expected one JSON object per line, found a {type(row).__name__}")
    return row


class _Document:
    """A JSON document as a stream of values."""

    def __init__(self, path: Path):
        try:
            with open_binary(path) as file:
                self._text = file.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise CorpusError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
        except UNREADABLE as error:
            raise CorpusError(f"{path}: cannot be read ({error})") from None
        self._at = 0

    def peek(self) -> str:
        """The next character that is not white space, "" at the end."""
        while self._text[self._at : self._at + 1].isspace():
            self._at += 1
        return self._text[self._at : self._at + 1]

    def take(self) -> str:
        found = self.peek()
        self._at += 1
        return found

    def value(self, where: str) -> Any:
        """The next JSON value."""
        self.peek()
        try:
            value, self._at = json.JSONDecoder().raw_decode(self._text, self._at)
            return value
        except json.JSONDecodeError as error:
            raise CorpusError(f"{where}: not JSON ({error.msg}); is the file cut?") from None
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{where}: not JSON that can be read ({error})") from None
