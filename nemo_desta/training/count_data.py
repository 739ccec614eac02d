"""``count=true``: rows and hours of each set of a training's data, beside the papers' figures. Needs no weights."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nemo_desta.data.audio_io import count_samples
from nemo_desta.data.row_source import RowSource
from nemo_desta.data.rows import audio_entries
from nemo_desta.data.settings import parse_data
from nemo_desta.data.sources import open_source, read_input_cfg
from nemo_desta.errors import ConfigError, RowError, row_guard
from nemo_desta.recipes.corpora.paper_table import Found, paper_table
from nemo_desta.training.check_data import READ_ROWS

_RATE = 16_000  # Hz, in which lengths of files are counted


@dataclass
class _Sets:
    """Of each set: rows, seconds, and rows whose length is not known."""

    rows: Counter[str] = field(default_factory=Counter)
    secs: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def count_data(data: Mapping[str, Any]) -> str:
    """The table for the section ``data``: a row's set is its ``dataset``, else its source's name.

    Of a source with more than `READ_ROWS` rows, evenly spaced ones are read and counts are scaled up. A source that is
    missing is named below the table.

    Raises:
        ConfigError: an invalid section, or no row at all.
    """
    settings, found = parse_data(data), _Sets()
    loaders = {"train": settings.train, **settings.validation}
    for loader in filter(None, loaders.values()):
        for item in _entries(loader.input_cfg):
            try:
                source = open_source(item, settings.audio_roots)
            except FileNotFoundError as error:
                found.notes.append(f"not here: {item.get('name') or item.get('rows')} ({error})")
            else:
                _count(source, found)
    if not found.rows:
        raise ConfigError(f"no rows in data: {'; '.join(found.notes) or 'give data.train_ds.input_cfg'}")
    table = {}
    for name, rows in found.rows.items():
        known = rows - found.unknown[name]
        hours = None if known <= 0 else found.secs[name] / 3600 * rows / known
        table[name] = Found(rows, hours)
        if 0 < found.unknown[name]:
            found.notes.append(
                f"{name}: {found.unknown[name]:,} of {rows:,} rows have no length and no audio file here"
            )
    return "\n".join([paper_table(table), *found.notes])


def _entries(input_cfg: Any) -> Iterator[Mapping[str, Any]]:
    """All entries that are no group."""
    for item in read_input_cfg(input_cfg):
        if item.get("type") == "group":
            yield from _entries(item.get("input_cfg"))
        else:
            yield item


def _count(source: RowSource, found: _Sets) -> None:
    stride = max(1, -(-len(source) // READ_ROWS))
    seen = range(0, len(source), stride)
    rows, secs, unknown, bad = Counter[str](), Counter[str](), Counter[str](), 0
    for index in seen:
        name, counted = source.name, False
        try:
            with row_guard():
                row = source.row(index)
                name = row.get("dataset") or source.name
                rows[name], counted = rows[name] + 1, True
                lengths = [entry.get("duration") for entry in audio_entries(row)]
                if None in lengths:
                    files = source.audio_files(index, row)
                    lengths = [count_samples(file, _RATE) / _RATE for file in files]
                secs[name] += sum(lengths)
        except RowError:
            unknown[name] += counted
            bad += not counted
    scale = len(source) / max(1, len(seen))
    for counts, total in ((rows, found.rows), (secs, found.secs), (unknown, found.unknown)):
        for name, value in counts.items():
            total[name] += value * scale if counts is secs else round(value * scale)
    if stride > 1:
        found.notes.append(f"{source.name}: estimated from {len(seen):,} of {len(source):,} rows, spread evenly")
    if bad:
        found.notes.append(f"{source.name}: {round(bad * scale):,} lines are no rows")
