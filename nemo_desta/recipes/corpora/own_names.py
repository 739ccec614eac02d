"""Rows with our own field names, and rows of a NeMo manifest: which keys are read, and warnings about the others.

An ignored key would silently be missing from the description. A key that looks like a misspelt field is therefore an
error; any other unknown key is logged once per file and counted. In tables (csv, tsv, huggingface) further columns
are attributes, because a table cannot hold objects.
"""

import difflib
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from nemo_desta.errors import ConfigError
from nemo_desta.recipes.corpora.card_keys import CLIP_FIELDS, Card
from nemo_desta.recipes.corpora.errors import Notices
from nemo_desta.recipes.corpora.template import fields_of

FLAT = ("csv", "tsv", "huggingface")
FIELDS = frozenset((*CLIP_FIELDS, "domain", "language", "split", "source"))
SEGMENT_FIELDS = frozenset(("start", "end", "transcript", "speaker", "attributes"))
_NAMES = yaml.safe_load(Path(__file__).with_name("own_names.yaml").read_text(encoding="utf-8"))
#: NeMo's names -> ours, in a row with an ``audio_filepath``.
NEMO: dict[str, str] = _NAMES["nemo"]
#: Unnamed columns, as pandas writes and reads them: the row number.
_NAMELESS = re.compile(r"|Unnamed: ?\d+(?:_level_\d+)?|__index_level_\d+__")


class OwnNames:
    """(row, where, folder of its file) -> clip, for a card without ``clip``."""

    def __init__(self, card: Card, notices: Notices):
        self._card, self._notices = card, notices
        reader = card.reader
        of_card = fields_of([card.attributes, card.split.by, *(t.match for t in reader.tables.values())])
        of_card |= fields_of([text.path for text in reader.texts.values()])
        self._known = FIELDS | of_card | {"attributes", "key", *reader.parts, *reader.where}

    def __call__(self, row: dict[str, Any], where: str, folder: str) -> dict[str, Any]:
        if row.get("audio_filepath") is not None and row.get("audio") is None:
            row = self._from_nemo(row, folder)
        if self._card.reader.type in FLAT:
            row = self._from_columns(row, where)
        elif self._card.reader.type != "lhotse":  # our own reader made those rows
            self._check_keys(row, self._known, where)
            segments = row.get("segments")
            for segment in segments if isinstance(segments, list) else ():
                if isinstance(segment, dict):
                    self._check_keys(segment, SEGMENT_FIELDS, where, "segments.")
        if row.get("attributes") is None:
            row["attributes"] = {}
        row.setdefault("source", self._card.name)
        return row

    def _from_nemo(self, row: dict[str, Any], folder: str) -> dict[str, Any]:
        """The row with our names. Paths are relative to the manifest's folder; a missing id becomes the path."""
        offset = row.get("offset") or 0
        if offset not in (0, "0", "0.0"):
            raise ConfigError(
                f"offset {offset!r}: a clip must be a whole file; split the audio into files and leave offset out"
            )
        result = {NEMO.get(name, name): value for name, value in row.items() if name not in ("offset", *NEMO.values())}
        result |= {name: value for name, value in row.items() if name in NEMO.values() and value is not None}
        audio = result["audio"]
        if not isinstance(audio, str):
            raise ConfigError(f"audio_filepath must be text, found {audio!r:.80}")
        result["audio"] = (PurePosixPath(folder) / audio).as_posix() if folder != "." else audio
        if result.get("id") is None:
            result["id"] = audio
        if result.get("domain") is None and self._card.domain is None and "text" in row:
            result["domain"] = "speech"
        return result

    def _from_columns(self, row: Mapping[str, Any], where: str) -> dict[str, Any]:
        clip: dict[str, Any] = {"attributes": {}}
        for name, value in row.items():
            value = (value.strip() or None) if isinstance(value, str) else value
            if name in FIELDS:
                clip[name] = value
            elif name == "attributes" and isinstance(value, dict):
                clip["attributes"] |= {key: one for key, one in value.items() if one is not None}
            elif _NAMELESS.fullmatch(name):
                if value is not None and not re.fullmatch(r"-?\d+(?:\.0)?", str(value)):
                    raise ConfigError(
                        f"column '{name}' has no name of its own and holds {value!r:.60}; name it in the header, or "
                        "take it out (df.to_csv(index=False))"
                    )
                self._notices.add(where, f"column '{name}' holds row numbers (pandas' index) and is left out")
            elif value is not None:
                clip["attributes"][name] = value
                if (meant := _nearest(name, FIELDS)) is not None and row.get(meant) is None:
                    self._notices.add(where, f"column '{name:.60}' is read as an attribute, not as '{meant}'")
        return clip

    def _check_keys(self, given: Mapping[str, Any], known: frozenset[str], where: str, of: str = "") -> None:
        """``of``: "" for a row, "segments." for one of its segments."""
        if given.keys() <= known or not self._card.reader.strict_keys:
            return
        unread = [key for key in given if key not in known]
        for key in unread:
            near = _nearest(key, known, of)
            if near is not None and near not in given:  # a null there is the author's own statement
                raise ConfigError(
                    f"unknown key '{of}{key:.60}', and no '{of}{near}'. Rename it; if it is a field of your own, the "
                    "card's reader.strict_keys: false keeps it"
                )
        listed = ", ".join(f"'{of}{key:.60}'" for key in sorted(unread)[:10])
        belongs = "" if of else ", put facts about the sound into 'attributes'"
        what = f"key {listed} is" if len(unread) == 1 else f"keys {listed} are"
        self._notices.add(where, f"{what} not read{belongs}")


@lru_cache(10_000)
def _nearest(key: str, known: frozenset[str], of: str = "") -> str | None:
    """The known field that ``key`` resembles, if any."""
    plain = re.sub(r"[\W_]+", "_", key[:100]).strip("_").lower()
    meant = _NAMES["meant"][of].get(plain) or (plain if plain in known else None)
    return meant or next(iter(difflib.get_close_matches(plain, known, n=1, cutoff=0.8)), None)
