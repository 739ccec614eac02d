"""Reads a corpus as its card says: rows are read, joined, renamed, mapped, split and checked, one at a time.

A clip is a dict: ``id, audio`` (relative to the data root), ``duration`` (seconds, None = not in the metadata),
``domain, source, attributes`` and where known ``transcript, caption, language, speaker_id, group, split, segments,
speakers``. Whether the audio can be used is checked by `check_audio`.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import Any

from nemo_desta.recipes.corpora.card import Card, read_card
from nemo_desta.recipes.corpora.clip_maker import ClipMaker
from nemo_desta.recipes.corpora.errors import CorpusError, Notices, named
from nemo_desta.recipes.corpora.files import lines, matching_files
from nemo_desta.recipes.corpora.own_names import FLAT
from nemo_desta.recipes.corpora.readers import MISSING_MARKERS, read_records
from nemo_desta.recipes.describe import NOT_AUDIBLE

_MANIFESTS = {".jsonl": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv"}


def load_corpus(
    name_or_path: str | os.PathLike[str],
    data_root: str | os.PathLike[str],
    *,
    splits: Iterable[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> "Corpus":
    """The corpus of a shipped card (by name), of a card file (``x.yaml``), or of a manifest.

    A manifest (``.jsonl``, ``.json``, ``.csv``, ``.tsv``, each also with ``.gz`` or ``.zst``) has our own field
    names, or NeMo's; its path may be relative to ``data_root``. ``splits``: only clips of these. ``overrides``:
    merged into the card, nested as it is.

    Raises ``CorpusError``: unknown name, an invalid card, no such files; ``FileNotFoundError``: no such manifest or
    data root.
    """
    root = Path(data_root)
    if not root.is_dir():
        raise FileNotFoundError(f"data root {root} does not exist, or is no folder")
    path = Path(name_or_path)
    kind = _MANIFESTS.get(path.with_suffix("").suffix if path.suffix in (".gz", ".zst") else path.suffix)
    if kind is None:
        card = read_card(name_or_path, overrides)
    else:
        found = next((p for p in (root / path, path) if p.is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"manifest {root / path} does not exist; give it relative to the data root, or in full"
            )
        kind = "jsonl" if kind == "json" and _holds_lines(found) else kind
        card = read_card("jsonl" if kind in ("json", "jsonl") else "csv", overrides)
        manifest = escape(str(path)) if found == root / path and not path.is_absolute() else str(found.absolute())
        card = replace(card, name=path.name.split(".")[0], reader=replace(card.reader, type=kind, files=manifest))
    try:
        with named("reader.files"):
            for source in (card.reader, *card.reader.tables.values()):
                for glob in source.globs:
                    next(matching_files(root, glob, folders=True))
    except CorpusError as error:
        raise CorpusError(f"corpus '{card.name}': {error}. {' '.join(card.obtain.split())}".rstrip()) from None
    return Corpus(card, root, splits=splits)


class Corpus:
    """Clips of one corpus, read again at each iteration in the order of the files.

    Memory per clip is a short hash of its id and group. While iterating, ``CorpusError`` names the file and row of: an
    unknown field, an invalid value, an audio path outside the data root, a repeated id, a group in two splits, or
    ``splits`` without clips.
    """

    def __init__(self, card: Card, data_root: str | os.PathLike[str], *, splits: Iterable[str] | None = None):
        self.card = card
        self.name, self.version = card.name, card.version
        self.data_root = Path(data_root)
        self.splits = None if splits is None else frozenset(map(str, splits))
        #: Attributes that descriptions leave out: shell patterns over names.
        self.not_audible: frozenset[str] = NOT_AUDIBLE | frozenset(card.not_audible)
        self._notices = Notices()
        #: Clips by split that ``splits`` leaves out, of the last reading.
        self.left_out: Counter[str] = Counter()
        #: (file, what) -> rows, of the last reading: ignored keys, columns left out, cells that count as missing.
        self.notices: Mapping[tuple[str, str], int] = self._notices.counts

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._notices.counts.clear()
        self.left_out.clear()
        with named(f"card {self.name}"):
            make = ClipMaker(self.card, self.data_root, self._notices)
        reader = self.card.reader
        if reader.type in FLAT and not self.card.clip and reader.missing is None:
            reader = replace(reader, missing=list(MISSING_MARKERS))
        ids: set[int] = set()
        split_of_group: dict[int, str | None] = {}
        seen_splits: set[str | None] = set()
        kept = 0
        records = read_records(reader, self.data_root, self._notices)
        where = f"the start of {', '.join(reader.globs)}"
        while True:
            with named(f"after {where}"):
                record = next(records, None)
            if record is None:
                break
            where = record[0]
            with named(where):
                clip = make(*record)
            key, split = hash(clip["id"]), clip.get("split")  # 8 bytes stand for an id
            if key in ids:
                raise CorpusError(f"{where}: id {clip['id']!r} was seen before; ids are unique in a corpus")
            ids.add(key)
            if (group := clip.get("group")) is not None:
                first = split_of_group.setdefault(hash(group), split)
                if first != split:
                    raise CorpusError(
                        f"{where}: group {group!r} is in split {split!r} here and in {first!r} before; a group never "
                        "crosses a split (leave `group` out where the official splits do not care)"
                    )
            seen_splits.add(split)
            if self.splits is None or split in self.splits:
                kept += 1
                yield clip
            else:
                self.left_out[str(split)] += 1
        self._notices.end()
        if self.splits and not kept:
            found = ", ".join(sorted(map(str, seen_splits))) or "no clip at all"
            raise CorpusError(
                f"corpus '{self.name}': no clip in {', '.join(sorted(self.splits))}; its splits: {found}"
            )


def _holds_lines(path: Path) -> bool:
    """Whether a ``.json`` file holds JSON lines, as NeMo's manifests do, rather than one document."""
    first = next((text for _, line in lines(path) if (text := line.strip())), "")
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and not (row and all(isinstance(value, dict) for value in row.values()))
