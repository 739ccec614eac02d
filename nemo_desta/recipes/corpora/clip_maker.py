"""Turns one metadata row into a clip as its card says: joins, templates, values, the split, and checks."""

import re
from collections.abc import Mapping
from contextlib import suppress
from hashlib import blake2b
from math import inf
from pathlib import Path
from typing import Any

import orjson

from nemo_desta.config import nearest
from nemo_desta.errors import ConfigError
from nemo_desta.recipes.corpora.audio import outward_links, relative_audio
from nemo_desta.recipes.corpora.card_keys import DOMAINS, Card
from nemo_desta.recipes.corpora.errors import Notices
from nemo_desta.recipes.corpora.files import lines
from nemo_desta.recipes.corpora.own_names import FLAT, OwnNames
from nemo_desta.recipes.corpora.readers import Table, read_records
from nemo_desta.recipes.corpora.template import Template, UnknownField, as_key, compile_value
from nemo_desta.recipes.describe import check_described

_TEXT = ("id", "audio", "domain", "transcript", "language", "speaker_id", "group", "split", "source")
_IDS = ("id", "speaker_id", "group")


class ClipMaker:
    """One card, compiled: (where, row, fields of its file) -> clip. Its `ConfigError` does not say which row."""

    def __init__(self, card: Card, root: Path, notices: Notices):
        self._card, self._root, self._notices = card, root, notices
        self._outward = outward_links(root)
        self._own = OwnNames(card, notices) if not card.clip else None
        times = {} if card.join is None else {"start": card.join.start}  # for `Joiner`
        if card.cut is not None:
            times |= {"cut_start": card.cut.start, "cut_end": card.cut.end}  # for `Cutter`
        self._clip = self._compiled({"domain": card.domain, "language": card.language, **card.clip, **times}, "clip")
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

    def __call__(self, where: str, row: dict[str, Any], of_file: dict[str, Any]) -> dict[str, Any]:
        fields = {**of_file, **row}
        self._extend(fields, where)
        own = self._own and self._own(row, where, of_file.get("folder", "."))
        clip = own or {"source": self._card.name, "attributes": {}}
        for name, template in self._clip:
            if clip.get(name) is None:
                clip[name] = self._mapped(name, _value(f"clip.{name}", template, fields))
        for name, template in self._attributes:
            value = self._mapped(name, _value(f"attributes.{name}", template, fields))
            if value is not None:
                clip["attributes"][name] = value
        self._check(clip, where)
        self._set_split(clip, fields)
        try:
            check_described(clip)
            orjson.dumps(clip)  # the plan holds clips as JSON
        except ValueError as error:
            raise ConfigError(str(error)) from None
        except TypeError as error:
            raise ConfigError(f"row {clip['id']!r:.200} cannot be written as JSON: {error}") from None
        return clip

    def _compiled(self, templates: Mapping[str, Any], what: str) -> list[tuple[str, Template]]:
        where = f"card {self._card.name}: {what}"
        return [(k, compile_value(v, where=f"{where}.{k}")) for k, v in templates.items() if v is not None]

    def _mapped(self, name: str, value: Any) -> Any:
        """The value as the card's ``values`` of this attribute or clip field say."""
        mapping = self._values.get(name)
        if mapping is None or value is None:
            return value
        if isinstance(value, list):
            new = (mapping.get(as_key(one), mapping.get("*", one)) for one in value)
            return [one for one in new if one is not None] or None
        return mapping.get(as_key(value), mapping.get("*", value))

    def _extend(self, fields: dict[str, Any], where: str) -> None:
        """Adds the parts of fields, the columns of joined tables, and the content of text files."""
        for name, pattern in self._parts.items():
            match = pattern.fullmatch(str(fields.get(name, "")).strip())
            if match is None:
                raise ConfigError(f"{name} {fields.get(name)!r} does not match reader.parts {pattern.pattern}")
            fields.update(match.groupdict())
        for name, config, table, match in self._joins:
            key = _value(f"reader.tables.{name}.match", match, fields)
            rows = table.rows(as_key(key)) if key is not None else []
            if not rows and config.required:
                raise ConfigError(f"table '{name}' ({', '.join(config.globs)}) has no row {key!r}")
            fields[name] = rows[0] if rows else dict.fromkeys(table.columns)
        for name, config, template in self._texts:
            path = _value(f"reader.texts.{name}.path", template, fields)
            relative = relative_audio(str(path), self._root, where=where, what="text")
            if (self._root / relative).is_file():
                fields[name] = "".join(line for _, line in lines(self._root / relative)).strip()
            elif config.required:
                raise ConfigError(f"no text file {relative} for this row")
            else:
                fields[name] = None

    def _check(self, clip: dict[str, Any], where: str) -> None:
        """Raise for an invalid clip; makes ``audio`` relative and ``duration`` a number."""
        if lacking := [name for name in ("id", "audio", "domain") if clip.get(name) in (None, "")]:
            held = ", ".join(
                map(
                    str,
                    [*(name for name in clip if name not in ("attributes", "source")), *(clip["attributes"] or ())],
                )
            )
            hint = ""
            if self._own is not None and not {"id", "audio"} <= clip.keys():  # names of its own
                hint = f"; `desta card {where.rpartition(':')[0]}` proposes a card for the names of this file"
            raise ConfigError(f"{', '.join(lacking)} missing; a clip needs id, audio, domain, has: {held:.300}{hint}")
        # JSON has types, so a wrong type is an error; tables hold only text. Ids may be numbers in both.
        is_json = self._own is not None and self._card.reader.type not in FLAT
        for name in _IDS if is_json else (*_IDS, "audio", "transcript", "language"):
            value = clip.get(name)
            if isinstance(value, (int, float)) and not (is_json and isinstance(value, (bool, float))):
                clip[name] = as_key(value)
        if not is_json and isinstance(clip.get("duration"), str):
            with suppress(ValueError):  # other texts are reported below
                clip["duration"] = float(clip["duration"])
        for name in _TEXT:
            if clip.get(name) is not None and not isinstance(clip[name], str):
                raise ConfigError(f"{name} must be text, found {type(clip[name]).__name__} {clip[name]!r:.80}")
        if not isinstance(clip["attributes"], dict):
            raise ConfigError(f"attributes must be an object, found {clip['attributes']!r:.80}")
        duration = clip.setdefault("duration", None)
        if duration is not None and not (type(duration) in (int, float) and 0 < duration < inf):
            raise ConfigError(f"duration must be seconds above 0, found {duration!r:.80}")
        if clip["domain"] not in DOMAINS:
            raise ConfigError(f"domain '{clip['domain']}' is not known.{nearest(clip['domain'], DOMAINS)}")
        clip["audio"] = relative_audio(clip["audio"], self._root, where=where)
        if (outward := self._outward(clip["audio"])) is not None:
            self._notices.add(where, outward)

    def _set_split(self, clip: dict[str, Any], fields: dict[str, Any]) -> None:
        rule = self._card.split
        if self._by is not None:
            value = _value("split.by", self._by, fields)
            if value is None:
                raise ConfigError(f"no value for split.by {rule.by!r}")
            key = as_key(value)
            if self._splits and not {key, "*"} & self._splits.keys():
                raise ConfigError(f"split.values has no {value!r}.{nearest(key, self._splits)}")
            clip["split"] = self._splits.get(key, self._splits.get("*", key))
            if clip["split"] is not None:
                return
        if rule.shares:
            group = clip.setdefault("group", clip.get("speaker_id") or clip["id"]) or clip["id"]
            digest = blake2b(f"{self._card.name}\n{group}".encode(), digest_size=8).digest()
            point = int.from_bytes(digest, "big") / 2**64  # the same on every machine, independent of other groups
            for split, share in rule.shares.items():
                clip["split"] = split
                point -= share
                if point < 0:
                    break


def _value(name: str, template: Template, fields: dict[str, Any]) -> Any:
    try:
        return template(fields)
    except UnknownField as error:
        raise ConfigError(f"{name}: {error}") from None
