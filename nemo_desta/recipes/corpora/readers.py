"""A card's reader: the files that its globs match, read by their type, as a stream of `Record`.

Rows are streamed, except from JSON documents. Tables joined to the rows are kept on disk.

Lhotse manifests are read without lhotse: JSON lines of cuts, or of recordings and supervisions. Only whole files are
accepted: a cut that is a part of its recording, a mix or padding has no audio file of its own.
``cuts.save_audios(folder)`` writes one, as the error says.
"""

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from nemo_desta.recipes.corpora.card_keys import ReaderConfig, SourceConfig
from nemo_desta.recipes.corpora.errors import CorpusError, Notices, named
from nemo_desta.recipes.corpora.files import Record, json_entries, json_lines, lines, matching_files
from nemo_desta.recipes.corpora.reader_types import READERS
from nemo_desta.recipes.corpora.template import Template, as_key

#: Spellings of a missing value in pandas, Python and spreadsheets. NA is left out: it is a country and a continent.
MISSING_MARKERS = ("nan", "NaN", "NAN", "None", "none", "null", "NULL", "N/A", "n/a", "#N/A", "<NA>", "NaT")

#: A lhotse cut counts as a whole recording up to this difference in seconds.
_WHOLE = 0.01


def read_records(source: SourceConfig, root: Path, notices: Notices | None = None) -> Iterator[Record]:
    """All rows of all files, in the order of the globs. Cells that count as missing are added to ``notices``.

    Raises ``CorpusError``: a glob that matches nothing, a path that ``pattern`` does not match, a row that cannot be
    read (not UTF-8, a truncated line, a missing column).
    """
    folders, reader = source.type == "huggingface", READERS[source.type]
    rows_of = reader(source, root).rows if isinstance(reader, type) else lambda one: reader(root / one, source)
    conditions = {
        name: {as_key(one) for one in (value if isinstance(value, list) else [value])}
        for name, value in source.where.items()
    }
    missing = frozenset(source.missing or ())
    for relative in chain.from_iterable(matching_files(root, glob, folders=folders) for glob in source.globs):
        path = PurePosixPath(relative)
        of_file = {"file": relative, "folder": str(path.parent), "stem": path.stem}
        if source.pattern:
            match = re.fullmatch(source.pattern, relative)
            if match is None:
                raise CorpusError(
                    f"{relative} does not match the card's pattern {source.pattern}; narrow reader.files"
                )
            of_file.update(match.groupdict())
        found = rows_of(relative)
        for where, row in found if source.turns is None else _turns(found, source.turns):
            for column in source.json_columns or ():
                row = _with_json(row, column, where)
            if missing or folders:
                row = _without_missing(row, missing, where, notices)
            if all(_holds(name, wanted, row, of_file, where) for name, wanted in conditions.items()):
                yield where, row, of_file


def jsonl_rows(path: Path, source: SourceConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Type jsonl."""
    return json_lines(path)


def json_rows(path: Path, source: SourceConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Type json. With ``nested``, each object of an entry is a row, and ``outer`` is the entry's key."""
    for where, entry in json_entries(path):
        if not source.nested:
            yield where, entry
            continue
        for key, row in entry.items():
            if isinstance(row, Mapping):
                yield where, {"outer": entry.get("key"), "key": key, **row}


def file_rows(path: Path, source: SourceConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Type files: one row without columns."""
    yield str(path), {}


def line_rows(path: Path, source: SourceConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Type lines: a row for each line that matches; other lines are notes between the rows, as in IEMOCAP's labels."""
    for number, line in lines(path):
        if match := re.fullmatch(source.line, line.strip()):
            yield f"{path}:{number}", match.groupdict()


class Table:
    """A joined table, on disk: looks up ``records`` by ``key``; ``many``: several rows may share a key.

    Raises ``CorpusError`` naming the row: a repeated key (unless ``many``), a key without value or of unknown fields.
    """

    def __init__(self, records: Iterable[Record], key: Template, *, many: bool = False):
        self.columns: list[str] = []
        # "": a temporary database. SQLite keeps it in memory while small, then on disk, and deletes it on close.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        unique = "" if many else "UNIQUE"
        self._database.execute(f"CREATE TABLE rows (position INTEGER PRIMARY KEY, key TEXT {unique}, row TEXT)")
        self._database.execute("BEGIN")
        for where, row, of_file in records:
            fields = {**of_file, **row}
            self.columns = self.columns or list(fields)
            with named(where):
                value = key(fields)
                if value is None:
                    raise CorpusError(f"{where}: no value for the key of this table")
                entry = (as_key(value), json.dumps(fields))
                try:
                    self._database.execute("INSERT INTO rows (key, row) VALUES (?, ?)", entry)
                except sqlite3.IntegrityError:
                    raise CorpusError(f"{where}: key {entry[0]!r} was seen before in this table") from None
        if many:
            self._database.execute("CREATE INDEX keys ON rows (key)")
        self._database.execute("COMMIT")
        self.rows = lru_cache(4096)(self._rows)

    def _rows(self, key: str) -> list[dict[str, Any]]:
        found = self._database.execute("SELECT row FROM rows WHERE key = ? ORDER BY position", (key,))
        return [json.loads(row) for (row,) in found]


def _holds(name: str, wanted: set[str], row: dict[str, Any], of_file: dict[str, Any], where: str) -> bool:
    fields = row if name in row else of_file
    if name not in fields:
        raise CorpusError(f"{where}: no field '{name}', which reader.where asks for; known: {', '.join(row)}")
    return as_key(fields[name]) in wanted


def _turns(rows: Iterable[tuple[str, dict[str, Any]]], column: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """One row per turn of the chat in ``column``; ``before``: the turns before it, each as "User: ..." or
    "Assistant: ..." in a line of its own, as ALARM gives the LLM those of InstructS2S."""
    for where, row in rows:
        turns = row.get(column)
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise CorpusError(f"{where}: column '{column}' (reader.turns) must be a list of objects")
        before = []
        for number, turn in enumerate(turns):
            yield where, {**row, **turn, "turn": number, "before": "\n".join(before)}
            who = "User" if turn.get("from") in ("human", "user") else "Assistant"
            before.append(f"{who}: {turn.get('text')}")


def _with_json(row: dict[str, Any], column: str, where: str) -> dict[str, Any]:
    """The row with the JSON object of a cell in place of its text."""
    try:
        value = json.loads(row[column])
    except (KeyError, TypeError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise CorpusError(f"{where}: column '{column}' (reader.json_columns) holds no JSON object")
    return {**row, column: value}


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


class LhotseReader:
    """Rows: ``id, audio, duration, transcript, language, speaker_id, group, attributes`` (gender and the supervision's
    custom values); several supervisions become ``segments`` and ``speakers``.
    """

    def __init__(self, source: SourceConfig, root: Path):
        self._root = root
        glob = source.supervisions if isinstance(source, ReaderConfig) else None
        files = () if glob is None else matching_files(root, glob)
        records = ((where, row, {}) for file in files for where, row in json_lines(root / file))
        self._supervisions = Table(records, lambda fields: fields.get("recording_id"), many=True)

    def rows(self, relative: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for where, item in json_lines(self._root / relative):
            if "sources" in item:  # a recording
                yield where, _lhotse_row(item, item, self._supervisions.rows(str(item.get("id"))), where)
            elif "recording" in item:
                yield where, _lhotse_row(item, _whole_recording(item, where), item.get("supervisions") or [], where)
            else:
                kind = item.get("type", "an object without 'sources' and 'recording'")
                raise CorpusError(
                    f"{where}: {kind} has no audio file of its own; save it with cuts.save_audios(folder)"
                )


def _whole_recording(cut: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    recording = cut["recording"]
    start, duration = cut.get("start", 0), cut.get("duration")
    if abs(start) > _WHOLE or duration is None or abs(duration - recording.get("duration", duration)) > _WHOLE:
        raise CorpusError(
            f"{where}: cut {cut.get('id')!r} ({start:g} s, {duration} s long) is only part of a recording of "
            f"{recording.get('duration')} s; save it as a file of its own with cuts.save_audios(folder)"
        )
    channel = cut.get("channel")
    there = {one for source in recording["sources"] for one in source.get("channels") or ()}
    if channel is not None and there and set(channel if isinstance(channel, list) else [channel]) != there:
        raise CorpusError(
            f"{where}: cut {cut.get('id')!r} is channel {channel} of a recording with the channels {sorted(there)}, "
            "and the channels of a file are averaged; save this channel on its own with cuts.save_audios(folder)"
        )
    return recording


def _lhotse_row(
    item: Mapping[str, Any], recording: Mapping[str, Any], spoken: list[Any], where: str
) -> dict[str, Any]:
    sources = recording["sources"]
    if len(sources) != 1 or sources[0].get("type") != "file":
        found = ", ".join(str(source.get("type")) for source in sources) or "none"
        raise CorpusError(f"{where}: {item.get('id')!r} needs one source of type 'file', found {found}")
    if recording.get("transforms"):
        raise CorpusError(
            f"{where}: {item.get('id')!r} has transforms ({recording['transforms']!r}), which are not applied; save it"
        )
    row = {"id": item["id"], "audio": sources[0]["source"], "duration": item.get("duration"), "attributes": {}}
    speakers = {one["speaker"]: _attributes(one) for one in spoken if one.get("speaker")}
    languages = {one["language"] for one in spoken if one.get("language")}
    row["language"] = languages.pop() if len(languages) == 1 else None
    speaker = next(iter(speakers)) if len(speakers) == 1 else None
    row["group"], row["speaker_id"] = speaker or recording["id"], speaker
    if len(spoken) == 1:
        row["transcript"], row["attributes"] = spoken[0].get("text"), _attributes(spoken[0])
    elif spoken:
        row["speakers"] = speakers
        row["segments"] = []
        for one in spoken:
            times = {"start": max(0.0, one["start"]), "end": one["start"] + one["duration"]}
            row["segments"].append({**times, "transcript": one.get("text"), "speaker": one.get("speaker")})
    return row


def _attributes(supervision: Mapping[str, Any]) -> dict[str, Any]:
    known = {"gender": supervision.get("gender"), **(supervision.get("custom") or {})}
    return {name: value for name, value in known.items() if isinstance(value, (str, int, float))}
