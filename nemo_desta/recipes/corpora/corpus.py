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
from functools import cached_property
from glob import escape
from pathlib import Path
from typing import Any

from nemo_desta.recipes.corpora.card import read_card
from nemo_desta.recipes.corpora.card_keys import Card
from nemo_desta.recipes.corpora.clip_maker import ClipMaker
from nemo_desta.recipes.corpora.cut import Cutter
from nemo_desta.recipes.corpora.errors import CorpusError, Notices, named
from nemo_desta.recipes.corpora.files import lines, matching_files
from nemo_desta.recipes.corpora.join import Joiner
from nemo_desta.recipes.corpora.own_names import FLAT
from nemo_desta.recipes.corpora.readers import MISSING_MARKERS, read_records
from nemo_desta.recipes.corpora.splits import (
    TRAIN,
    VALID,
    VALIDATION_NAMES,
    ValidationConfig,
    group_hash,
    group_of,
    validation_groups,
)
from nemo_desta.recipes.describe import NOT_AUDIBLE

_MANIFESTS = {".jsonl": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv"}


def load_corpus(
    name_or_path: str | os.PathLike[str],
    data_root: str | os.PathLike[str],
    *,
    splits: Iterable[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    validation: ValidationConfig | None = None,
) -> "Corpus":
    """The corpus of a shipped card (by name), of a card file (``x.yaml``), or of a manifest.

    A manifest (``.jsonl``, ``.json``, ``.csv``, ``.tsv``, each also with ``.gz`` or ``.zst``) has our own field
    names, or NeMo's; its path may be relative to ``data_root``. ``splits``: only clips of these. ``overrides``:
    merged into the card, nested as it is. ``validation``: see `Corpus`.

    Raises ``CorpusError``: unknown name, an invalid card, no such files; ``FileNotFoundError``: no such manifest or
    data root.
    """
    root = Path(data_root)
    if not root.is_dir():
        raise FileNotFoundError(f"data root {root} does not exist, or is no folder")
    path = Path(name_or_path)
    kind = _suffix_type(path)
    if kind is None:
        card = read_card(name_or_path, overrides)
    else:
        found = next((p for p in (root / path, path) if p.is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"manifest {root / path} does not exist; give it relative to the data root, or in full"
            )
        kind = manifest_type(found)
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
    return Corpus(card, root, splits=splits, validation=validation)


class Corpus:
    """Clips of one corpus, read again at each iteration in the order of the files.

    ``validation``: where ``splits`` has both train and valid (or is None) and the corpus has no validation split,
    whole groups of its training clips become ``valid``; clips without a split count as training clips. The corpus is
    then read once more, for the sizes of its groups.

    Memory per clip is a short hash of its id and group. While iterating, ``CorpusError`` names the file and row of: an
    unknown field, an invalid value, an audio path outside the data root, a repeated id, a group in two splits, or
    ``splits`` without clips.
    """

    def __init__(
        self,
        card: Card,
        data_root: str | os.PathLike[str],
        *,
        splits: Iterable[str] | None = None,
        validation: ValidationConfig | None = None,
    ):
        self.card = card
        self.name, self.version = card.name, card.version
        self.data_root = Path(data_root)
        self.splits = None if splits is None else frozenset(map(str, splits))
        both = self.splits is None or {TRAIN, VALID} <= self.splits
        self._validation = validation if validation is not None and validation.share > 0 and both else None
        #: Attributes that descriptions leave out: shell patterns over names.
        self.not_audible: frozenset[str] = NOT_AUDIBLE | frozenset(card.not_audible)
        #: Clips of the last reading by split, of the splits that are read and of those that are left out.
        self.kept: Counter[str | None] = Counter()
        self.left_out: Counter[str | None] = Counter()
        self._notices = Notices()
        #: (file, what) -> rows, of the last reading: ignored keys, columns left out, cells that count as missing.
        self.notices: Mapping[tuple[str, str], int] = self._notices.counts

    def __iter__(self) -> Iterator[dict[str, Any]]:
        chosen = self._chosen
        self.kept.clear()
        self.left_out.clear()
        for clip in self._clips():
            if chosen is not None and clip.get("split") in (None, TRAIN):
                group = clip["group"] = group_of(clip)
                clip["split"] = VALID if group_hash(group, self._validation.seed) in chosen else TRAIN
            split = clip.get("split")
            if self.splits is None or split in self.splits:
                self.kept[split] += 1
                yield clip
            else:
                self.left_out[split] += 1
        if self.splits and not self.kept:
            found = ", ".join(sorted(map(str, self.left_out))) or "no clip at all"
            raise CorpusError(
                f"corpus '{self.name}': no clip in {', '.join(sorted(self.splits))}; its splits: {found}"
            )

    def said_of_splits(self) -> list[str]:
        """Sentences about the last reading: a validation split that was made, and splits that were left out."""
        said, valid = [], self.kept[VALID]
        if self.kept and self._chosen is not None:
            total = self.kept[TRAIN] + valid
            made = f"{valid} of {total} training clips ({valid / max(1, total):.0%}), whole groups, became 'valid'"
            one = "all clips are one group, so none became 'valid'"
            said.append(f"{self.name} has no validation split: {made if valid else one} (validation.share)")
        if self.left_out:
            counts = ", ".join(
                f"{split or 'no split'} {n} clip{'s'[: n > 1]}" for split, n in sorted(self.left_out.items(), key=str)
            )
            other = VALIDATION_NAMES & self.left_out.keys() - {VALID}
            hint = "; a validation split is called 'valid' here: rename it in the card's split.values" if other else ""
            said.append(f"{self.name}: left out: {counts}{hint}")
        return said

    @cached_property
    def _chosen(self) -> frozenset[int] | None:
        """Hashes of the groups that become the validation split; None where the corpus has one or none is wanted."""
        if self._validation is None:
            return None
        sizes: Counter[int] = Counter()
        for clip in self._clips():
            if clip.get("split") in VALIDATION_NAMES:
                return None
            if clip.get("split") in (None, TRAIN):
                sizes[group_hash(group_of(clip), self._validation.seed)] += 1
        return validation_groups(sizes, self._validation.share)

    def _clips(self) -> Iterator[dict[str, Any]]:
        """Every clip of every split, as the card says."""
        clips = self._rows()
        if self.card.cut is not None:
            clips = Cutter(self.card, self.data_root)(clips)
        return clips if self.card.join is None else Joiner(self.card, self.data_root)(clips)

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The clip of every row."""
        self._notices.counts.clear()
        with named(f"card {self.name}"):
            make = ClipMaker(self.card, self.data_root, self._notices)
        reader = self.card.reader
        if reader.type in FLAT and not self.card.clip and reader.missing is None:
            reader = replace(reader, missing=list(MISSING_MARKERS))
        ids: set[int] = set()
        split_of_group: dict[int, str | None] = {}
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
            yield clip
        self._notices.end()


def manifest_type(path: Path) -> str | None:
    """The reader's type of a table or manifest, by its name and, for ``.json``, its first line; None for others."""
    kind = _suffix_type(path)
    return "jsonl" if kind == "json" and _holds_lines(path) else kind


def _suffix_type(path: Path) -> str | None:
    return _MANIFESTS.get(path.with_suffix("").suffix if path.suffix in (".gz", ".zst") else path.suffix)


def _holds_lines(path: Path) -> bool:
    """Whether a ``.json`` file holds JSON lines, as NeMo's manifests do, rather than one document."""
    first = next((text for _, line in lines(path) if (text := line.strip())), "")
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and not (row and all(isinstance(value, dict) for value in row.values()))
