"""Finds, reads, overrides and checks corpus cards, whose keys are in `card_keys`."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from nemo_desta.config import MISSING, nearest, parse
from nemo_desta.errors import ConfigError
from nemo_desta.recipes.corpora.card_keys import (
    CLIP_FIELDS,
    DOMAINS,
    JOINS,
    SEEN,
    Card,
    CutConfig,
    JoinConfig,
    PaperConfig,
    ReaderConfig,
    SplitConfig,
    TableConfig,
    TextConfig,
)
from nemo_desta.recipes.corpora.errors import CorpusError, named
from nemo_desta.recipes.corpora.reader_types import READERS

_CARDS = resources.files("nemo_desta.recipes.corpora") / "cards"


def shipped_cards() -> list[str]:
    """Names of the cards that ship with the package."""
    return sorted(item.name.removesuffix(".yaml") for item in _CARDS.iterdir() if item.name.endswith(".yaml"))


def read_card(name_or_path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> Card:
    """A shipped card by name or a card file, with ``overrides`` merged in (nested mappings as in the YAML).

    Raises ``CorpusError`` naming the card and the key, with the nearest known name.
    """
    text = str(name_or_path)
    is_file, known = text.endswith((".yaml", ".yml")), shipped_cards()
    if not is_file and text not in known:
        hint = nearest(text, known)
        raise CorpusError(
            f"no corpus '{text}'.{hint} A card file (.yaml) or a manifest (.jsonl, .csv, .tsv) works, too"
        )
    source = Path(text) if is_file else _CARDS / f"{text}.yaml"
    try:
        values = yaml.safe_load(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CorpusError(f"card {text} does not exist") from None
    except OSError as error:
        raise CorpusError(f"card {text:.300} cannot be read: {error}") from None
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:  # not only YAMLError
        raise CorpusError(f"card {text}: not YAML in UTF-8: {type(error).__name__}: {error}") from None
    if not isinstance(values, Mapping):
        raise CorpusError(f"card {text}: expected a mapping, found {type(values).__name__}")
    return parse_card(_merged(values, overrides or {}), where=text)


def parse_card(values: Mapping[str, Any], *, where: str) -> Card:
    """A card from a plain mapping. Raises ``CorpusError`` naming every key that is missing or wrong."""
    with named(f"card {where}"):
        problems = [*_missing(values), *_wrong(Card, values, "card")]
        if not problems:
            card = parse(Card, _with_joins(values), "card")
            problems = list(_contradictions(card))
        if problems:
            raise ConfigError("; ".join(problems))
    return card


def _missing(values: Mapping[str, Any]) -> Iterator[str]:
    """Required keys that are not there."""
    required = {"card": (values, [item.name for item in fields(Card) if item.default == MISSING])}
    reader = values.get("reader", {})
    if isinstance(reader, Mapping):
        required["card.reader"] = (reader, ["type", "files"])
        tables = reader.get("tables")
        for name, table in tables.items() if isinstance(tables, Mapping) else ():
            if isinstance(table, Mapping):
                required[f"card.reader.tables.{name}"] = (table, ["type", "files", "key", "match"])
    if isinstance(cut := values.get("cut"), Mapping):
        required["card.cut"] = (cut, ["start"])
    for name, paper in papers.items() if isinstance(papers := values.get("papers"), Mapping) else ():
        if isinstance(paper, Mapping):
            required[f"card.papers.{name}"] = (paper, ["name"])
    for where, (given, names) in required.items():
        for name in names:
            if given.get(name, MISSING) == MISSING:
                yield f"'{where}.{name}' must be given"


def _wrong(kind: type, values: Any, where: str) -> Iterator[str]:
    """Keys that are unknown, or whose value has another type; each is parsed alone."""
    if not isinstance(values, Mapping):
        yield f"'{where}' must be a mapping, found {type(values).__name__}: {values!r:.80}"
        return
    others = {item.name: "" for item in fields(kind) if item.default == MISSING}
    nested = {"card.reader": ReaderConfig, "card.split": SplitConfig, "card.cut": CutConfig, "card.join": JoinConfig}
    joins = {"card.reader.tables": TableConfig, "card.reader.texts": TextConfig, "card.papers": PaperConfig}
    for key, value in values.items():
        there = f"{where}.{key}"
        if there in nested and value is not None:
            yield from _wrong(nested[there], value, there)
        elif there in joins and isinstance(value, Mapping):
            for name, one in value.items():
                yield from _wrong(joins[there], one, f"{there.removeprefix('card.')}.{name}")
        elif value != MISSING:
            try:
                parse(kind, {**others, key: value}, where)
            except ConfigError as error:
                yield str(error)


def _with_joins(values: Mapping[str, Any]) -> dict[str, Any]:
    reader = dict(values["reader"])
    for key, kind in (("tables", TableConfig), ("texts", TextConfig)):
        if isinstance(joined := reader.get(key), Mapping):
            reader[key] = {name: parse(kind, one, f"reader.{key}.{name}") for name, one in joined.items()}
    papers = values.get("papers")
    if isinstance(papers, Mapping):
        papers = {name: parse(PaperConfig, one, f"papers.{name}") for name, one in papers.items()}
    return {**values, "reader": reader, "papers": papers or {}}


def _contradictions(card: Card) -> Iterator[str]:
    sources = {"reader": card.reader, **{f"reader.tables.{name}": t for name, t in card.reader.tables.items()}}
    patterns = {f"reader.parts.{name}": pattern for name, pattern in card.reader.parts.items()}
    for where, source in sources.items():
        if source.type not in READERS:
            yield f"{where}.type '{source.type}' is not known.{nearest(source.type, READERS)}"
        globs = [source.files] if isinstance(source.files, str) else source.files
        if not isinstance(globs, list) or not globs or not all(isinstance(glob, str) for glob in globs):
            yield f"{where}.files must be a glob or a list of globs, found {source.files!r}"
        patterns[f"{where}.pattern"], patterns[f"{where}.line"] = source.pattern or "", source.line or ""
        if (source.type == "lines") != bool(source.line):
            yield f"{where}.line is the regular expression of a line, for type lines and for no other"
    for where, pattern in patterns.items():
        try:
            re.compile(pattern)
        except (re.error, TypeError, OverflowError, RecursionError) as error:
            yield f"{where} is not a regular expression: {error}"
    if card.domain is not None and card.domain not in DOMAINS and "{" not in card.domain:
        yield f"domain '{card.domain}' is not known.{nearest(card.domain, DOMAINS)}"
    for where, value, allowed in (("seen", card.seen, SEEN), ("join.kind", card.join and card.join.kind, JOINS)):
        if value is not None and value not in allowed:
            yield f"{where} '{value}' is not known.{nearest(str(value), allowed)}"
    if card.clip and not {"id", "audio"} <= set(card.clip):
        yield "clip needs at least id and audio; leave it out where rows carry our own field names"
    known = {"clip": CLIP_FIELDS, "values": [*card.attributes, *CLIP_FIELDS, "language", "domain"]}
    for where, names in known.items():
        for key in (key for key in getattr(card, where) if key not in names):
            yield f"unknown key '{where}.{key}'.{nearest(str(key), names)}"
    maps = {"split.values": card.split.values, **{f"values.{name}": found for name, found in card.values.items()}}
    for where, mapping in maps.items():
        if not isinstance(mapping, Mapping):
            yield f"{where} must be a mapping, value as found -> value, found {mapping!r:.80}"
        elif flags := [key for key in mapping if isinstance(key, bool)]:
            yield f"{where}: YAML reads an unquoted yes, no, on or off as {flags[0]}; put it in quotes"
    shares = card.split.shares
    for where, given in (("shares", shares.keys()), ("values", card.split.values.values())):
        if wrong := [split for split in given if not isinstance(split, str | None)]:
            yield f"split.{where}: a split's name must be text, found {wrong[0]!r:.80}"
    if not all(isinstance(share, int | float) for share in shares.values()):
        yield f"split.shares must be numbers, found {shares}"
    elif shares and (abs(sum(shares.values()) - 1) > 1e-6 or min(shares.values()) < 0):
        yield f"split.shares must be 0 or more and add up to 1, found {shares}"
    if None in card.split.values.values() and not shares:
        yield "split.values leaves clips to split.shares (null), but there are no shares"


def _merged(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(values)
    for key, value in overrides.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if both else value
    return result
