"""Labelled corpora as manifests: one JSON object per clip, checked line by line, and the check of the clip itself.

Fields of a row: ``id``, ``audio`` (relative to the data root), ``duration`` (seconds), ``domain``; optional
``transcript`` (None = unknown), ``attributes`` (name -> value), ``group`` (what never crosses a split: speaker,
recording), ``split``, ``source`` (the corpus' name; the manifest's file name where it is missing) and what `describe`
reads beside them. Further fields are passed through.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from math import inf
from pathlib import Path, PurePath
from typing import Any

#: A clip may differ from its manifest's duration by this many seconds, or by this share when that is more.
DURATION_TOLERANCE = (0.5, 0.05)

_REQUIRED = ("id", "audio", "duration", "domain")


class ManifestError(ValueError):
    """A manifest line that cannot be used; the message starts with ``file:line``."""


def read_corpus(
    manifests: Iterable[str | os.PathLike[str]],
    data_root: str | os.PathLike[str],
    *,
    splits: Iterable[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of all manifests in order; with ``splits``, only rows whose ``split`` is one of them.

    Manifest paths may be relative to ``data_root``. Each row comes back with ``audio`` relative to ``data_root`` and
    with ``source`` set. Whether the audio file exists is not looked at: see `audio_problem`.

    Raises ``ManifestError`` for a line that is not a row, an audio path that leaves ``data_root``, an id seen before;
    ``FileNotFoundError`` for a missing manifest.
    """
    wanted = None if splits is None else {str(split) for split in splits}
    seen: set[str] = set()
    for manifest in manifests:
        path = Path(data_root) / manifest
        for number, line in _lines(path):
            row = _parse(line, where=f"{path}:{number}")
            if row["id"] in seen:
                raise ManifestError(f"{path}:{number}: id {row['id']!r} was seen before; ids are unique in a run")
            seen.add(row["id"])
            row["audio"] = relative_audio(row["audio"], data_root, where=f"{path}:{number}")
            row.setdefault("source", path.stem)
            if wanted is None or row.get("split") in wanted:
                yield row


def relative_audio(audio: str, data_root: str | os.PathLike[str], *, where: str) -> str:
    """``audio`` as a normalised path relative to ``data_root``; ``ManifestError`` when it lies outside of it.

    Decided on the path as written: links that the user placed inside the root are followed.
    """
    root = os.path.abspath(data_root)
    full = os.path.normpath(os.path.join(root, audio))
    if os.path.commonpath([root, full]) != root or full == root:
        raise ManifestError(f"{where}: audio {audio!r} is not a file below the data root {root}")
    return PurePath(os.path.relpath(full, root)).as_posix()


def audio_problem(row: Mapping[str, Any], data_root: str | os.PathLike[str]) -> tuple[str, str] | None:
    """Why the row's clip cannot be used, as (reason, detail); None when it can.

    Reads the header and the last sample, which finds truncated files without decoding them whole, and compares the
    length with the row's ``duration``, which the description will claim.
    """
    import soundfile

    path = Path(data_root) / row["audio"]
    if not path.is_file():
        return "missing audio", f"no file {row['audio']}"
    try:
        with soundfile.SoundFile(path) as clip:
            seconds = clip.frames / clip.samplerate
            if clip.frames > 0:
                clip.seek(clip.frames - 1)
                complete = len(clip.read(1)) == 1
            else:
                complete = False
    except (soundfile.SoundFileError, OSError) as error:
        return "corrupt audio", f"{row['audio']}: {error}"
    if not complete:
        return "corrupt audio", f"{row['audio']}: {seconds:.2f} s by its header, but the end cannot be read"
    allowed = max(DURATION_TOLERANCE[0], DURATION_TOLERANCE[1] * row["duration"])
    if abs(seconds - row["duration"]) > allowed:
        return "wrong duration", f"{row['audio']}: {seconds:.2f} s long, the manifest says {row['duration']:.2f} s"
    return None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"manifest {path} does not exist; give it relative to the data root, or in full")
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8").strip()
            except UnicodeDecodeError as error:
                raise ManifestError(f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start})") from None
            if line:
                yield number, line


def _parse(line: str, *, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ManifestError(f"{where}: not JSON ({error.msg} at character {error.pos}); is the line cut?") from None
    if not isinstance(row, dict):
        raise ManifestError(f"{where}: expected one JSON object per line, found a {type(row).__name__}")
    missing = [field for field in _REQUIRED if row.get(field) is None]
    if missing:
        raise ManifestError(f"{where}: {', '.join(missing)} missing; a row needs {', '.join(_REQUIRED)}")
    for field, kind in {"id": str, "audio": str, "domain": str, "transcript": str, "attributes": dict}.items():
        if row.get(field) is not None and not isinstance(row[field], kind):
            found = f"{type(row[field]).__name__} {row[field]!r}"
            raise ManifestError(f"{where}: {field} must be {kind.__name__}, found {found}")
    duration = row["duration"]
    if isinstance(duration, bool) or not isinstance(duration, (int, float)) or not 0 < duration < inf:
        raise ManifestError(f"{where}: duration must be seconds above 0, found {duration!r}")
    return row
