"""Check whether a clip's audio can be used and how long it is, from the header and the end of the file.

An unusable clip raises no error: it gets a `Rejection`, which is counted.
"""

import os
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import PurePath
from struct import unpack_from
from typing import Any

import numpy as np

from nemo_desta.data.audio_decoding import RATES, AudioError, duration_fault, longest, open_sound, regular_file
from nemo_desta.recipes.corpora.errors import CorpusError
from nemo_desta.recipes.items import Rejection

_HEAD = 4096  # bytes; holds every WAV header without long notes before the samples
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_BITS = {_PCM: (8, 16, 24, 32), _FLOAT: (32, 64)}
_RATES = range(RATES[0], 655_351)  # Hz
# Folders and a name in a row, none of them hidden, ".." or Windows: nothing to resolve.
_PLAIN = re.compile(r"[^/\\.\0][^/\\\0]*(?:/[^/\\.\0][^/\\\0]*)*")


def check_audio(
    clip: Mapping[str, Any], data_root: str | os.PathLike[str], *, decode: bool = False
) -> tuple[Rejection | None, float | None]:
    """(why the clip cannot be used or None, its seconds or None where the header cannot be read).

    Reasons: ``missing audio`` (also a folder, a pipe or a device); ``corrupt audio`` (unreadable, empty, or shorter
    than its header says); ``wrong duration`` (the file's length differs from ``duration``). ``decode`` reads the
    samples, up to ``duration``, and also finds damage in the middle and samples that are not finite.
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


def with_duration(clip: Mapping[str, Any], data_root: str | os.PathLike[str]) -> Mapping[str, Any] | None:
    """The clip with its ``duration`` in seconds, read from the file's header where the metadata does not state it.

    None: the file cannot be used, or its header does not state it either.
    """
    if clip.get("duration") is not None:
        return clip
    problem, seconds = check_audio(clip, data_root)
    return None if problem is not None or seconds is None else {**clip, "duration": seconds}


def relative_audio(audio: str, data_root: str | os.PathLike[str], *, where: str = "", what: str = "audio") -> str:
    """``audio`` as a normalised path relative to ``data_root``; ``CorpusError`` when it lies outside of it.

    Only the path text is checked. Links inside the root are followed, see `outward_links`.
    """
    if _PLAIN.fullmatch(audio):
        return audio
    root = os.path.abspath(data_root)
    full = os.path.normpath(os.path.join(root, audio))
    if "\0" in audio or os.path.commonpath([root, full]) != root or full == root:
        raise CorpusError(f"{where}: {what} {audio!r} is not a file below the data root {root}")
    return PurePath(os.path.relpath(full, root)).as_posix()


def outward_links(data_root: str | os.PathLike[str]) -> Callable[[str], str | None]:
    """Finds folders that are links out of the data root: (relative audio path) -> a warning, or None.

    Training does not follow such a link by itself (`AudioRoots`). Links to single files are not checked.
    """
    root = os.path.abspath(data_root)
    real_root = os.path.realpath(root)

    @cache
    def warning(folder: str) -> str | None:
        if not folder:
            return None
        above, real = warning(os.path.dirname(folder)), os.path.realpath(os.path.join(root, folder))
        if above is not None or os.path.commonpath([real_root, real]) == real_root:
            return above
        return (
            f"folder '{folder}' is a link to {real}, outside the data root: training reads these clips only where "
            "that folder is one of data.audio_roots"
        )

    return lambda audio: warning(os.path.dirname(audio))


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


def intact_seconds(path: str) -> float | None:
    """Seconds of an intact plain WAV file by its header, in a fraction of libsndfile's time.

    None: another format, a rare header or damage; libsndfile must decide. Raises ``OSError``.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        head, size = os.read(descriptor, _HEAD), os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    at, rate, block = 12, 0, 0
    while at + 8 <= len(head):
        name, length = head[at : at + 4], unpack_from("<I", head, at + 4)[0]
        if name == b"data":
            whole = 0 < length <= size - at - 8 and block > 0 and rate > 0
            return length // block / rate if whole and length >= block else None
        if name == b"fmt " and at + 24 <= len(head):
            kind, channels, rate, _, block, bits = unpack_from("<HHIIHH", head, at + 8)
            if kind == _EXTENSIBLE and at + 34 <= len(head):
                kind = unpack_from("<H", head, at + 32)[0]
            if bits not in _BITS.get(kind, ()) or block != channels * bits // 8 or rate not in _RATES:
                return None
        at += 8 + length + length % 2
    return None
