"""Turns one metadata row into a clip as its card says: joins, templates, values, the split, and checks."""

import re
from collections.abc import Callable, Mapping
from hashlib import blake2b
from math import inf
from pathlib import Path
from typing import Any

import orjson

from nemo_desta.config import nearest
from nemo_desta.recipes.corpora.audio import OutwardLinks, relative_audio
from nemo_desta.recipes.corpora.card import DOMAINS, Card
from nemo_desta.recipes.corpora.errors import CorpusError
from nemo_desta.recipes.corpora.files import lines
from nemo_desta.recipes.corpora.notices import Notices
from nemo_desta.recipes.corpora.own_names import FLAT, OwnNames
from nemo_desta.recipes.corpora.readers import read_records
from nemo_desta.recipes.corpora.tables import Table
from nemo_desta.recipes.corpora.template import UnknownField, as_key, compile_value
from nemo_desta.recipes.describe import check_described

_TEXT = ("id", "audio", "domain", "transcript", "language", "speaker_id", "group", "split", "source")
_IDS = ("id", "speaker_id", "group")


class ClipMaker:
    """One card, compiled: (where, row, fields of its file) -> clip."""

    def __init__(self, card: Card, root: Path, notices: Notices):
        self._card, self._root, self._notices = card, root, notices
        self._outward = OutwardLinks(root)
        self._own = OwnNames(card, notices) if not card.clip else None
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
        own = self._own and self._own(row, where, of_file.get("folder", "."))
        clip = own or {"source": self._card.name, "attributes": {}}
        for name, template in self._clip:
            if clip.get(name) is None:
                clip[name] = self._value(name, template, fields, where, "clip")
        for name, template in self._attributes:
            value = self._value(name, template, fields, where, "attributes")
            if value is not None:
                clip["attributes"][name] = value
        self._check(clip, where)
        self._set_split(clip, fields, where)
        try:
            check_described(clip)
            orjson.dumps(clip)  # the plan holds clips as JSON
        except ValueError as error:
            raise CorpusError(f"{where}: {error}") from None
        except TypeError as error:
            raise CorpusError(f"{where}: row {clip['id']!r:.200} cannot be written as JSON: {error}") from None
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
        """Raise for an invalid clip; makes ``audio`` relative and ``duration`` a number."""
        for name in ("id", "audio", "domain"):
            if clip.get(name) is None or clip[name] == "":
                held = ", ".join(map(str, [*clip, *(clip["attributes"] or ())]))
                raise CorpusError(f"{where}: {name} missing; a clip needs id, audio, domain, has: {held:.300}")
        # JSON has types, so a wrong type is an error; tables hold only text. Ids may be numbers in both.
        is_json = self._own is not None and self._card.reader.type not in FLAT
        for name in _IDS if is_json else (*_IDS, "audio", "transcript", "language"):
            value = clip.get(name)
            if isinstance(value, (int, float)) and not (is_json and isinstance(value, (bool, float))):
                clip[name] = as_key(value)
        if not is_json:
            clip["duration"] = _number(clip.get("duration"))
        for name in _TEXT:
            if clip.get(name) is not None and not isinstance(clip[name], str):
                found = f"{type(clip[name]).__name__} {clip[name]!r:.80}"
                raise CorpusError(f"{where}: {name} must be text, found {found}")
        if not isinstance(clip["attributes"], dict):
            raise CorpusError(f"{where}: attributes must be an object, found {clip['attributes']!r:.80}")
        duration = clip.setdefault("duration", None)
        if duration is not None and (
            isinstance(duration, bool) or not isinstance(duration, (int, float)) or not 0 < duration < inf
        ):
            raise CorpusError(f"{where}: duration must be seconds above 0, found {duration!r:.80}")
        if clip["domain"] not in DOMAINS:
            raise CorpusError(f"{where}: domain '{clip['domain']}' is not known.{nearest(clip['domain'], DOMAINS)}")
        clip["audio"] = relative_audio(clip["audio"], self._root, where=where)
        if (outward := self._outward(clip["audio"])) is not None:
            self._notices.add(where, outward)

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
    """A split by the hash of ``key``: the same on every machine, independent of other groups."""
    point = int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64
    for split, share in shares.items():
        point -= share
        if point < 0:
            return split
    return next(reversed(shares))


def _number(value: Any) -> Any:
    """Numeric text as a number; anything else unchanged, so that the check reports it."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value
