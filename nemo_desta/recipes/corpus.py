"""Manifests by our own field names, several at once: `read_corpus` over ``corpora/``, which reads everything else.

Fields of a row: ``id``, ``audio`` (relative to the data root), ``duration`` (seconds), ``domain``; optional
``transcript`` (None = unknown), ``attributes`` (name -> value), ``group`` (what never crosses a split: speaker,
recording), ``split``, ``source`` (the corpus' name; the manifest's file name where it is missing) and what `describe`
reads beside them. Further fields are passed through.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nemo_desta.recipes.corpora import CorpusError, check_audio, load_corpus, relative_audio

ManifestError = CorpusError

__all__ = ["ManifestError", "audio_problem", "read_corpus", "relative_audio"]


def read_corpus(
    manifests: Iterable[str | os.PathLike[str]],
    data_root: str | os.PathLike[str],
    *,
    splits: Iterable[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of all manifests in order; with ``splits``, only rows whose ``split`` is one of them.

    Manifest paths may be relative to ``data_root``. Each row comes back with ``audio`` relative to ``data_root`` and
    with ``source`` set. Whether the audio file exists is not looked at: see `check_audio`.

    Raises ``ManifestError`` for a line that is not a row or has no duration, an audio path that leaves ``data_root``,
    an id seen before; ``FileNotFoundError`` for a missing manifest.
    """
    wanted = None if splits is None else {str(split) for split in splits}
    seen: set[int] = set()
    for manifest in manifests:
        for where, row in load_corpus(manifest, data_root).located():
            if row["duration"] is None:
                raise ManifestError(f"{where}: duration missing; a row needs id, audio, duration, domain")
            if hash(row["id"]) in seen:
                raise ManifestError(f"{where}: id {row['id']!r} was seen before; ids are unique in a run")
            seen.add(hash(row["id"]))
            if wanted is None or row.get("split") in wanted:
                yield row


def audio_problem(row: Mapping[str, Any], data_root: str | os.PathLike[str]) -> tuple[str, str] | None:
    """Why the row's clip cannot be used, as (reason, detail); None when it can. See `check_audio`."""
    verdict, _ = check_audio(row, data_root)
    return None if verdict is None else (verdict.reason, verdict.detail)
