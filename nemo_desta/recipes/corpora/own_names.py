"""Rows with our own field names, and rows of a NeMo manifest: which keys are read, and warnings about the others.

An ignored key would silently be missing from the description. A key that looks like a misspelt field is therefore an
error; any other unknown key is logged once per file and counted. In tables (csv, tsv, huggingface) further columns
are attributes, because a table cannot hold objects.
"""

import difflib
import re
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import Any

from nemo_desta.recipes.corpora.card import CLIP_FIELDS, Card
from nemo_desta.recipes.corpora.errors import CorpusError
from nemo_desta.recipes.corpora.notices import Notices
from nemo_desta.recipes.corpora.template import fields_of

FLAT = ("csv", "tsv", "huggingface")
FIELDS = (*CLIP_FIELDS, "domain", "language", "split", "source")
SEGMENT_FIELDS = ("start", "end", "transcript", "speaker", "attributes")
#: NeMo's names -> ours, in a row with an ``audio_filepath``.
NEMO = {"audio_filepath": "audio", "text": "transcript", "lang": "language", "speaker": "speaker_id"}
#: Names in other formats whose spelling is not close to ours.
_MEANT = {
    **{"text": "transcript", "transcription": "transcript", "sentence": "transcript", "lang": "language"},
    **{"speaker": "speaker_id", "path": "audio", "file": "audio", "wav": "audio", "filename": "audio"},
}
_MEANT_IN_SEGMENTS = {"text": "transcript", "begin": "start", "start_time": "start", "end_time": "end", "stop": "end"}
#: Unnamed columns, as pandas writes and reads them: the row number.
_NAMELESS = re.compile(r"|Unnamed: ?\d+(?:_level_\d+)?|__index_level_\d+__")


class OwnNames:
    """(row, where, folder of its file) -> clip, for a card without ``clip``."""

    def __init__(self, card: Card, notices: Notices):
        self._name, self._notices = card.name, notices
        self._flat = card.reader.type in FLAT
        self._generated = card.reader.type == "lhotse"  # our own reader made these rows
        self._strict = card.reader.strict_keys
        reader = card.reader
        of_card = fields_of([card.attributes, card.split.by, *(t.match for t in reader.tables.values())])
        of_card |= fields_of([text.path for text in reader.texts.values()]) | set(reader.parts) | set(reader.where)
        self._known = {*FIELDS, "attributes", *of_card, "key"}
        self._meant: dict[str, str | None] = {}
        self._has_domain = card.domain is not None

    def __call__(self, row: dict[str, Any], where: str, folder: str) -> dict[str, Any]:
        if row.get("audio_filepath") is not None and row.get("audio") is None:
            row = self._from_nemo(row, where, folder)
        clip = self._from_columns(row, where) if self._flat else row
        if not self._flat and not self._generated:
            self._check_keys(clip, where)
        if clip.get("attributes") is None:
            clip["attributes"] = {}
        clip.setdefault("source", self._name)
        return clip

    def _from_nemo(self, row: dict[str, Any], where: str, folder: str) -> dict[str, Any]:
        """The row with our names. Paths are relative to the manifest's folder; a missing id becomes the path."""
        offset = row.get("offset") or 0
        if offset not in (0, "0", "0.0"):
            raise CorpusError(
                f"{where}: offset {offset!r}: a clip must be a whole file; split the audio into files and leave "
                "offset out"
            )
        result = {NEMO.get(name, name): value for name, value in row.items() if name not in ("offset", *NEMO.values())}
        result |= {name: value for name, value in row.items() if name in NEMO.values() and value is not None}
        audio = result["audio"]
        if not isinstance(audio, str):
            raise CorpusError(f"{where}: audio_filepath must be text, found {audio!r:.80}")
        result["audio"] = (PurePosixPath(folder) / audio).as_posix() if folder != "." else audio
        if result.get("id") is None:
            result["id"] = audio
        if result.get("domain") is None and not self._has_domain and "text" in row:
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
                self._leave_out(name, value, where)
            elif value is not None:
                clip["attributes"][name] = value
                if (meant := self._nearest(name, FIELDS, _MEANT)) is not None and row.get(meant) is None:
                    self._notices.add(where, f"column '{name:.60}' is read as an attribute, not as '{meant}'")
        return clip

    def _leave_out(self, name: str, value: Any, where: str) -> None:
        """Drop a column that pandas made of its index (row numbers)."""
        if value is not None and not re.fullmatch(r"-?\d+(?:\.0)?", str(value)):
            raise CorpusError(
                f"{where}: column '{name}' has no name of its own and holds {value!r:.60}; name it in the header, or "
                "take it out (df.to_csv(index=False))"
            )
        self._notices.add(where, f"column '{name}' holds row numbers (pandas' index) and is left out")

    def _check_keys(self, clip: Mapping[str, Any], where: str) -> None:
        if not clip.keys() <= self._known:
            self._check_unknown(clip, self._known, _MEANT, where)
        segments = clip.get("segments")
        for segment in segments if isinstance(segments, list) else ():
            if isinstance(segment, dict) and not segment.keys() <= set(SEGMENT_FIELDS):
                self._check_unknown(segment, SEGMENT_FIELDS, _MEANT_IN_SEGMENTS, where, "segments.")

    def _check_unknown(
        self, given: Mapping[str, Any], known: Collection[str], meant: Mapping[str, str], where: str, of: str = ""
    ) -> None:
        for key in given:
            if key in known or self._strict is False:
                continue
            near = self._nearest(key, known, meant)
            if near is not None and given.get(near) is None:
                raise CorpusError(
                    f"{where}: unknown key '{of}{key:.60}', and no '{of}{near}'. Rename it; if it is a field of your "
                    "own, the card's reader.strict_keys: false keeps it"
                )
            belongs = "" if of else ", put facts about the sound into 'attributes'"
            self._notices.add(where, f"key '{of}{key:.60}' is not read{belongs}")

    def _nearest(self, key: str, known: Collection[str], meant: Mapping[str, str]) -> str | None:
        """The known field that ``key`` resembles, if any."""
        if key not in self._meant:
            plain = re.sub(r"[\W_]+", "_", key[:100]).strip("_").lower()
            close = difflib.get_close_matches(plain, known, n=1, cutoff=0.8)
            if len(self._meant) > 10_000:
                self._meant.clear()
            self._meant[key] = meant.get(plain) or (plain if plain in known else close[0] if close else None)
        return self._meant[key]
