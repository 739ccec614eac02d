"""A card's reader: the files that its globs match, read by their type, as a stream of `Record`.

Rows are streamed, except from JSON documents. Joined tables are in ``tables.py``.
"""

import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from nemo_desta.recipes.corpora.card import SourceConfig
from nemo_desta.recipes.corpora.errors import CorpusError
from nemo_desta.recipes.corpora.files import matching_files
from nemo_desta.recipes.corpora.formats import Record, csv_rows, json_entries, json_lines
from nemo_desta.recipes.corpora.huggingface_reader import HuggingFaceReader
from nemo_desta.recipes.corpora.lhotse_reader import LhotseReader
from nemo_desta.recipes.corpora.notices import Notices
from nemo_desta.recipes.corpora.template import as_key

#: Spellings of a missing value in pandas, Python and spreadsheets. NA is left out: it is a country and a continent.
MISSING_MARKERS = ("nan", "NaN", "NAN", "None", "none", "null", "NULL", "N/A", "n/a", "#N/A", "<NA>", "NaT")


def read_records(source: SourceConfig, root: Path, notices: Notices | None = None) -> Iterator[Record]:
    """All rows of all files, in the order of the globs. Cells that count as missing are added to ``notices``.

    Raises ``CorpusError``: a glob that matches nothing, a path that ``pattern`` does not match, a row that cannot be
    read (not UTF-8, a truncated line, a missing column).
    """
    read_rows = _rows_of(source, root)
    conditions = {name: {as_key(v) for v in _as_list(value)} for name, value in source.where.items()}
    pattern = re.compile(source.pattern) if source.pattern else None
    missing = frozenset(source.missing or ())
    folders = source.type == "huggingface"
    for relative in chain.from_iterable(matching_files(root, glob, folders=folders) for glob in source.globs):
        of_file = _path_fields(relative, pattern)
        for where, row in read_rows(relative):
            if missing or source.type == "huggingface":
                row = _without_missing(row, missing, where, notices)
            if not conditions or _kept(conditions, row, of_file, where):
                yield where, row, of_file


def _rows_of(source: SourceConfig, root: Path) -> Callable[[str], Iterator[tuple[str, dict[str, Any]]]]:
    if source.type in ("csv", "tsv"):
        return lambda relative: csv_rows(root / relative, source)
    if source.type == "jsonl":
        return lambda relative: json_lines(root / relative)
    if source.type == "json":
        return lambda relative: json_entries(root / relative)
    if source.type == "files":
        return lambda relative: iter([(str(root / relative), {})])
    if source.type == "lhotse":
        return LhotseReader(source, root).rows
    return HuggingFaceReader(source, root).rows


def _path_fields(relative: str, pattern: re.Pattern[str] | None) -> dict[str, Any]:
    path = PurePosixPath(relative)
    fields = {"file": relative, "folder": str(path.parent), "stem": path.stem}
    if pattern is not None:
        match = pattern.fullmatch(relative)
        if match is None:
            raise CorpusError(f"{relative} does not match the card's pattern {pattern.pattern}; narrow reader.files")
        fields.update(match.groupdict())
    return fields


def _kept(conditions: dict[str, set[str]], row: dict[str, Any], of_file: dict[str, Any], where: str) -> bool:
    for name, wanted in conditions.items():
        fields = row if name in row else of_file
        if name not in fields:
            raise CorpusError(f"{where}: no field '{name}', which reader.where asks for; known: {', '.join(row)}")
        if as_key(fields[name]) not in wanted:
            return False
    return True


def _without_missing(
    row: dict[str, Any], missing: frozenset[str], where: str, notices: Notices | None
) -> dict[str, Any]:
    """The row; cells that are one of ``missing`` or NaN (a gap in a numeric column) become None."""
    result = {}
    for name, value in row.items():
        if isinstance(value, str) and (cell := value.strip()) in missing:
            value = None
            if notices is not None:
                notices.add(where, f"'{cell}' counts as missing in column '{name:.60}' (reader.missing)")
        result[name] = None if isinstance(value, float) and value != value else value
    return result


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
