"""From a card to clips: rows are read, joined, renamed, mapped, split and checked, one at a time.

A clip is a dict: ``id, audio`` (relative to the data root), ``duration`` (seconds, None = not in the metadata),
``domain, source, attributes`` and where known ``transcript, caption, language, speaker_id, group, split, segments,
speakers``. Whether the audio can be used is another question: see `check_audio`.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from glob import escape
from hashlib import blake2b
from math import inf
from pathlib import Path
from typing import Any

from nemo_desta.config import nearest
from nemo_desta.recipes.corpora.audio import relative_audio
from nemo_desta.recipes.corpora.card import DOMAINS, Card, read_card
from nemo_desta.recipes.corpora.errors import CorpusError
from nemo_desta.recipes.corpora.files import lines
from nemo_desta.recipes.corpora.readers import first_file, read_records
from nemo_desta.recipes.corpora.tables import Table
from nemo_desta.recipes.corpora.template import UnknownField, as_key, compile_value
from nemo_desta.recipes.describe import NOT_AUDIBLE

_MANIFESTS = {".jsonl": "jsonl", ".csv": "csv", ".tsv": "tsv"}
_FLAT = ("csv", "tsv", "huggingface")  # rows without an ``attributes`` object: further columns are the attributes
_OWN_TEXT = ("id", "audio", "domain", "transcript", "language", "speaker_id", "group", "split", "source")


def load_corpus(
    name_or_path: str | os.PathLike[str],
    data_root: str | os.PathLike[str],
    *,
    splits: Iterable[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> "Corpus":
    """The corpus of a shipped card (by name), of a card file (``x.yaml``), or of a manifest.

    A manifest (``.jsonl``, ``.csv``, ``.tsv``, each also with ``.gz``) has our own field names; its path may be
    relative to ``data_root``. ``splits``: only clips of these. ``overrides``: merged into the card, nested as it is.

    Raises ``CorpusError``: unknown name, a card that cannot be right, no such files; ``FileNotFoundError``: no such
    manifest or data root.
    """
    root = Path(data_root)
    if not root.is_dir():
        raise FileNotFoundError(f"data root {root} does not exist, or is no folder")
    path = Path(name_or_path)
    kind = _MANIFESTS.get(path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix)
    if kind is None:
        card = read_card(name_or_path, overrides)
    else:
        found = next((p for p in (root / path, path) if p.is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"manifest {root / path} does not exist; give it relative to the data root, or in full"
            )
        card = read_card("jsonl" if kind == "jsonl" else "csv", overrides)
        manifest = escape(str(path)) if found == root / path and not path.is_absolute() else str(found.absolute())
        card = replace(card, name=path.name.split(".")[0], reader=replace(card.reader, type=kind, files=manifest))
    try:
        for source in (card.reader, *card.reader.tables.values()):
            first_file(source, root)
    except CorpusError as error:
        raise CorpusError(f"corpus '{card.name}': {error}. {' '.join(card.obtain.split())}".rstrip()) from None
    return Corpus(card, root, splits=splits)


class Corpus:
    """Clips of one corpus, read anew at each iteration in the order of the files.

    Memory does not grow with the corpus but for short hashes of ids and groups. While iterating, ``CorpusError``
    names the file and row of: an unknown field, a value that cannot be, an audio path outside the data root, an id
    seen before, a group that is in two splits, ``splits`` that no clip is in.
    """

    def __init__(self, card: Card, data_root: str | os.PathLike[str], *, splits: Iterable[str] | None = None):
        self.card = card
        self.data_root = Path(data_root)
        self.splits = None if splits is None else frozenset(map(str, splits))
        #: What descriptions leave out: shell patterns over attribute names.
        self.not_audible: frozenset[str] = NOT_AUDIBLE | frozenset(card.not_audible)

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def version(self) -> str:
        return self.card.version

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for _, clip in self.located():
            yield clip

    def located(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(``file:row``, clip) of every clip, for messages of whoever works on it."""
        make = _ClipMaker(self.card, self.data_root)
        ids: set[int] = set()
        split_of_group: dict[int, str | None] = {}
        seen_splits: set[str | None] = set()
        kept = 0
        for where, row, of_file in read_records(self.card.reader, self.data_root):
            clip = make(where, row, of_file)
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
                yield where, clip
        if self.splits and not kept:
            found = ", ".join(sorted(str(split) for split in seen_splits)) or "no clip at all"
            raise CorpusError(
                f"corpus '{self.name}': no clip in {', '.join(sorted(self.splits))}; its splits: {found}"
            )


class _ClipMaker:
    """One card, compiled: (where, row, fields of its file) -> clip."""

    def __init__(self, card: Card, root: Path):
        self._card, self._root = card, root
        self._own_names = not card.clip
        self._clip = self._compiled({"domain": card.domain, "language": card.language, **card.clip}, "clip")
        self._attributes = self._compiled(card.attributes, "attributes")
        self._values = {name: {as_key(k): v for k, v in mapping.items()} for name, mapping in card.values.items()}
        self._by = compile_value(card.split.by, where="split.by") if card.split.by else None
        self._splits = {as_key(key): value for key, value in card.split.values.items()}
        self._parts = {name: re.compile(pattern) for name, pattern in card.reader.parts.items()}
        self._joins = []
        for name, config in card.reader.tables.items():
            key = compile_value(config.key, where=f"reader.tables.{name}.key")
            match = compile_value(config.match, where=f"reader.tables.{name}.match")
            self._joins.append((name, config, Table(read_records(config, root), key), match))
        self._texts = [
            (name, config, compile_value(config.path, where=f"reader.texts.{name}.path"))
            for name, config in card.reader.texts.items()
        ]
        self._extends = bool(self._parts or self._joins or self._texts)
        self._merges = bool(self._extends or self._clip or self._attributes or self._by)

    def __call__(self, where: str, row: dict[str, Any], of_file: dict[str, Any]) -> dict[str, Any]:
        fields = {**of_file, **row} if self._merges else row
        if self._extends:
            self._extend(fields, where)
        clip = self._own(row) if self._own_names else {"source": self._card.name, "attributes": {}}
        for name, template in self._clip:
            if clip.get(name) is None:
                clip[name] = self._value(name, template, fields, where, "clip")
        for name, template in self._attributes:
            value = self._value(name, template, fields, where, "attributes")
            if value is not None:
                clip["attributes"][name] = value
        self._check(clip, where)
        self._set_split(clip, fields, where)
        return clip

    def _compiled(self, templates: Mapping[str, Any], what: str) -> list[tuple[str, Callable[..., Any]]]:
        where = f"card {self._card.name}: {what}"
        return [(k, compile_value(v, where=f"{where}.{k}")) for k, v in templates.items() if v is not None]

    def _value(self, name: str, template: Callable[..., Any], fields: dict[str, Any], where: str, what: str) -> Any:
        try:
            value = template(fields)
        except UnknownField as error:
            raise CorpusError(f"{where}: {what}.{name}: {error}") from None
        mapping = self._values.get(name)
        if mapping is None or value is None:
            return value
        if isinstance(value, list):
            return [new for one in value if (new := _mapped(mapping, one)) is not None] or None
        return _mapped(mapping, value)

    def _own(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row that has a clip's fields by our own names."""
        if self._card.reader.type in _FLAT:
            clip: dict[str, Any] = {"attributes": {}}
            for name, value in row.items():
                value = (value.strip() or None) if isinstance(value, str) else value
                own = name in _OWN_TEXT or name in ("duration", "caption", "segments", "speakers")
                if own:
                    clip[name] = value
                elif value is not None:
                    clip["attributes"][name] = value
        else:
            clip = row
            if clip.get("attributes") is None:
                clip["attributes"] = {}
        clip.setdefault("source", self._card.name)
        return clip

    def _extend(self, fields: dict[str, Any], where: str) -> None:
        """Adds the parts of fields, the columns of joined tables, and the content of text files."""
        for name, pattern in self._parts.items():
            match = pattern.fullmatch(str(fields.get(name, "")).strip())
            if match is None:
                raise CorpusError(
                    f"{where}: {name} {fields.get(name)!r} does not match reader.parts {pattern.pattern}"
                )
            fields.update(match.groupdict())
        for name, config, table, match in self._joins:
            key = self._value(f"{name}.match", match, fields, where, "reader.tables")
            rows = table.rows(as_key(key)) if key is not None else []
            if not rows and config.required:
                raise CorpusError(f"{where}: table '{name}' ({', '.join(config.globs)}) has no row {key!r}")
            fields[name] = rows[0] if rows else dict.fromkeys(table.columns)
        for name, config, template in self._texts:
            path = self._value(f"{name}.path", template, fields, where, "reader.texts")
            relative = relative_audio(str(path), self._root, where=where, what="text")
            if (self._root / relative).is_file():
                fields[name] = "".join(line for _, line in lines(self._root / relative)).strip()
            elif config.required:
                raise CorpusError(f"{where}: no text file {relative} for this row")
            else:
                fields[name] = None

    def _check(self, clip: dict[str, Any], where: str) -> None:
        """Raise for what no clip can be; makes ``audio`` relative and ``duration`` a number."""
        for name in ("id", "audio", "domain"):
            if clip.get(name) is None or clip[name] == "":
                raise CorpusError(f"{where}: {name} missing; a clip needs id, audio, domain")
        if not self._own_names or self._card.reader.type in _FLAT:
            for name in ("id", "audio", "transcript", "speaker_id", "group", "language"):
                if isinstance(clip.get(name), (int, float)):
                    clip[name] = as_key(clip[name])
            clip["duration"] = _number(clip.get("duration"))
        for name in _OWN_TEXT:
            if clip.get(name) is not None and not isinstance(clip[name], str):
                raise CorpusError(f"{where}: {name} must be text, found {type(clip[name]).__name__} {clip[name]!r}")
        if not isinstance(clip["attributes"], dict):
            raise CorpusError(f"{where}: attributes must be an object, found {clip['attributes']!r}")
        duration = clip.setdefault("duration", None)
        if duration is not None and (
            isinstance(duration, bool) or not isinstance(duration, (int, float)) or not 0 < duration < inf
        ):
            raise CorpusError(f"{where}: duration must be seconds above 0, found {duration!r}")
        if clip["domain"] not in DOMAINS:
            raise CorpusError(f"{where}: domain '{clip['domain']}' is not known.{nearest(clip['domain'], DOMAINS)}")
        clip["audio"] = relative_audio(clip["audio"], self._root, where=where)

    def _set_split(self, clip: dict[str, Any], fields: dict[str, Any], where: str) -> None:
        rule = self._card.split
        if self._by is not None:
            value = self._value("by", self._by, fields, where, "split")
            if value is None:
                raise CorpusError(f"{where}: no value for split.by {rule.by!r}")
            clip["split"] = as_key(value)
            if self._splits:
                clip["split"] = _mapped(self._splits, value, unknown=KeyError)
                if clip["split"] is KeyError:
                    raise CorpusError(f"{where}: split.values has no {value!r}.{nearest(as_key(value), self._splits)}")
            if clip["split"] is not None:
                return
        if rule.shares:
            group = clip.setdefault("group", clip.get("speaker_id") or clip["id"]) or clip["id"]
            clip["split"] = _drawn(rule.shares, f"{self._card.name}\n{group}")


def _mapped(mapping: Mapping[str, Any], value: Any, unknown: Any = None) -> Any:
    key = as_key(value)
    if key in mapping:
        return mapping[key]
    return mapping.get("*", value if unknown is None else unknown)


def _drawn(shares: Mapping[str, float], key: str) -> str:
    """A split by the hash of ``key``: the same on every machine, whatever other groups there are."""
    point = int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64
    for split, share in shares.items():
        point -= share
        if point < 0:
            return split
    return next(reversed(shares))


def _number(value: Any) -> Any:
    """Text that is a number as a number; anything else as it is, for the check to name."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value
