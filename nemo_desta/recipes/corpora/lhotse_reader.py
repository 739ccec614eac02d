"""Reads lhotse manifests as rows with our own field names, without lhotse: cuts, or recordings and supervisions.

Only JSON lines (``.jsonl``, ``.jsonl.gz``) and only whole files are accepted: a cut that is a part of its recording, a
mix or padding has no audio file of its own. ``cuts.save_audios(folder)`` writes one, as the error says.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nemo_desta.recipes.corpora.card import ReaderConfig, SourceConfig
from nemo_desta.recipes.corpora.errors import CorpusError
from nemo_desta.recipes.corpora.files import matching_files
from nemo_desta.recipes.corpora.formats import json_lines
from nemo_desta.recipes.corpora.tables import Table

#: A cut counts as a whole recording up to this difference in seconds.
_WHOLE = 0.01


class LhotseReader:
    """Rows: ``id, audio, duration, transcript, language, speaker_id, group, attributes`` (gender and the supervision's
    custom values); several supervisions become ``segments`` and ``speakers``.
    """

    def __init__(self, source: SourceConfig, root: Path):
        self._root = root
        self._supervisions = None
        glob = source.supervisions if isinstance(source, ReaderConfig) else None
        if glob is not None:
            records = (
                (where, row, {}) for file in matching_files(root, glob) for where, row in json_lines(root / file)
            )
            self._supervisions = Table(records, lambda fields: fields.get("recording_id"), many=True)

    def rows(self, relative: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for where, item in json_lines(self._root / relative):
            if "sources" in item:  # a recording
                spoken = self._supervisions.rows(str(item.get("id"))) if self._supervisions else []
                yield where, _row(item, item, spoken, where)
            elif "recording" in item:
                yield where, _row(item, _whole_recording(item, where), item.get("supervisions") or [], where)
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
    channel, there = cut.get("channel"), _channels(recording)
    if channel is not None and there and set(channel if isinstance(channel, list) else [channel]) != there:
        raise CorpusError(
            f"{where}: cut {cut.get('id')!r} is channel {channel} of a recording with the channels {sorted(there)}, "
            "and the channels of a file are averaged; save this channel on its own with cuts.save_audios(folder)"
        )
    return recording


def _channels(recording: Mapping[str, Any]) -> set[int]:
    return {channel for source in recording["sources"] for channel in source.get("channels") or ()}


def _row(item: Mapping[str, Any], recording: Mapping[str, Any], spoken: list[Any], where: str) -> dict[str, Any]:
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
    row["group"] = row["speaker_id"] = next(iter(speakers)) if len(speakers) == 1 else None
    row["group"] = row["group"] or recording["id"]
    if len(spoken) == 1:
        row["transcript"], row["attributes"] = spoken[0].get("text"), _attributes(spoken[0])
    elif spoken:
        row["speakers"] = speakers
        row["segments"] = [
            {
                "start": max(0.0, one["start"]),
                "end": one["start"] + one["duration"],
                "transcript": one.get("text"),
                "speaker": one.get("speaker"),
            }
            for one in spoken
        ]
    return row


def _attributes(supervision: Mapping[str, Any]) -> dict[str, Any]:
    custom = supervision.get("custom") or {}
    known = {"gender": supervision.get("gender"), **custom}
    return {name: value for name, value in known.items() if isinstance(value, (str, int, float))}
