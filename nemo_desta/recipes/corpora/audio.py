"""Check whether a clip's audio can be used and how long it is, from the header and the end of the file.

An unusable clip raises no error: it gets a `Rejection`, which is counted. ``headers.py`` confirms intact WAV files in
a fraction of libsndfile's time; all other files are opened with libsndfile.
"""

import os
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np

from nemo_desta.data.audio_decoding import AudioError, duration_fault, longest, open_sound, regular_file
from nemo_desta.recipes.corpora.errors import CorpusError
from nemo_desta.recipes.corpora.headers import intact_seconds
from nemo_desta.recipes.items import Rejection

# Folders and a name in a row, none of them hidden, ".." or Windows: nothing to resolve.
_PLAIN = re.compile(r"[^/\\.\0][^/\\\0]*(?:/[^/\\.\0][^/\\\0]*)*")


def check_audio(
    clip: Mapping[str, Any], data_root: str | os.PathLike[str], *, decode: bool = False
) -> tuple[Rejection | None, float | None]:
    """(why the clip cannot be used or None, its seconds by its header or None where that cannot be read).

    Reasons: ``missing audio`` (also a folder, a pipe or a device instead of a file); ``corrupt audio`` (unreadable,
    empty, or shorter than its header says); ``wrong duration`` when the file's length differs from ``duration``.
    ``decode`` reads every sample, which also finds damage in the middle and samples that are not finite. A file that
    is longer than its ``duration`` is not read to its end.
    """
    name, claimed = clip["audio"], clip.get("duration")
    try:
        path = regular_file(os.path.join(data_root, name), name)
        seconds = None if decode else intact_seconds(path)
        if seconds is None:
            seconds = _seconds(path, name, claimed, decode)
    except AudioError as error:
        return Rejection("missing audio" if error.reason == "not_found" else "corrupt audio", str(error)), None
    except OSError as error:
        return Rejection("corrupt audio", f"{name}: {error}"), None
    if fault := duration_fault(seconds, claimed, "the metadata"):
        return Rejection("wrong duration", f"{name}: {fault}"), seconds
    return None, seconds


def relative_audio(audio: str, data_root: str | os.PathLike[str], *, where: str = "", what: str = "audio") -> str:
    """``audio`` as a normalised path relative to ``data_root``; ``CorpusError`` when it lies outside of it.

    Only the path text is checked. Links inside the root are followed, see `OutwardLinks`.
    """
    if _PLAIN.fullmatch(audio):
        return audio
    root = os.path.abspath(data_root)
    full = os.path.normpath(os.path.join(root, audio))
    if "\0" in audio or os.path.commonpath([root, full]) != root or full == root:
        raise CorpusError(f"{where}: {what} {audio!r} is not a file below the data root {root}")
    return PurePath(os.path.relpath(full, root)).as_posix()


class OutwardLinks:
    """Finds folders that are links out of the data root: (relative audio path) -> a warning, or None.

    Training does not follow such a link by itself (`AudioRoots`), so the user is warned before rows are made. Each
    folder is checked once. Links to single files are not checked.
    """

    def __init__(self, data_root: str | os.PathLike[str]):
        self._root = os.path.abspath(data_root)
        self._real = os.path.realpath(self._root)
        self._known: dict[str, str | None] = {"": None}

    def __call__(self, audio: str) -> str | None:
        return self._of(os.path.dirname(audio))

    def _of(self, folder: str) -> str | None:
        if folder not in self._known:
            above, real = self._of(os.path.dirname(folder)), os.path.realpath(os.path.join(self._root, folder))
            if above is None and os.path.commonpath([self._real, real]) != self._real:
                above = (
                    f"folder '{folder}' is a link to {real}, outside the data root: training reads these clips only "
                    "where that folder is one of data.audio_roots"
                )
            self._known[folder] = above
        return self._known[folder]


def _seconds(path: str, name: str, claimed: float | None, decode: bool) -> float:
    """Seconds of a file: by its header, or with ``decode`` by its samples. Raises `AudioError`."""
    with open_sound(path, name) as sound:
        if sound.num_frames == 0:
            raise AudioError("empty", f"{name} holds no samples")
        if not decode and sound.num_frames is not None:
            sound.check_end()
            return sound.num_frames / sound.sampling_rate
        num_frames = 0
        for block in sound.blocks(longest(claimed)):
            num_frames += len(block)
            if not np.isfinite(block).all():
                secs = num_frames / sound.sampling_rate
                raise AudioError("corrupt", f"{name} holds samples that are not finite before {secs:.2f} s")
        return num_frames / sound.sampling_rate
