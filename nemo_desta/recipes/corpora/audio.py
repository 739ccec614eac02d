"""Whether a clip's audio can be used, and how long it is: from the header and the end of the file alone.

A clip that cannot be used is no error but a `Verdict` that is counted. ``headers.py`` confirms sound WAV and FLAC
files in a fraction of the time; whatever it is not sure of is opened with libsndfile.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from nemo_desta.recipes.corpora.errors import CorpusError
from nemo_desta.recipes.corpora.headers import intact_seconds
from nemo_desta.recipes.items import Verdict

#: A clip may differ from its metadata's duration by this many seconds, or by this share when that is more.
DURATION_TOLERANCE = (0.5, 0.05)

# Folders and a name in a row, none of them hidden, ".." or Windows: nothing to resolve.
_PLAIN = re.compile(r"[^/\\.\0][^/\\\0]*(?:/[^/\\.\0][^/\\\0]*)*")
# libsndfile's log where a header promises more bytes than there are; it then reads on as if nothing were amiss.
_SHORT = re.compile(r"(?:Data Size|data|SSND) +: (\d+) \(should be (\d+)\)")
_UNKNOWN_SIZES = (0, 0x7FFFFFFF, 0xFFFFFFFF)  # written by programs that stream


def check_audio(
    clip: Mapping[str, Any], data_root: str | os.PathLike[str], *, decode: bool = False
) -> tuple[Verdict | None, float | None]:
    """(why the clip cannot be used or None, its seconds by its header or None where that cannot be read).

    Reasons: ``missing audio``; ``corrupt audio`` (unreadable, empty, or shorter than its header says); ``wrong
    duration`` when the clip has a ``duration`` and the file another one. ``decode`` reads every sample, which also
    finds damage in the middle and samples that are not finite.
    """
    path = os.path.join(data_root, clip["audio"])
    try:
        seconds = None if decode else intact_seconds(path)
        if seconds is None:
            seconds, fault = _opened(path, decode)
            if fault is not None:
                return Verdict("corrupt audio", f"{clip['audio']}: {fault}"), seconds
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return Verdict("missing audio", f"no file {clip['audio']}"), None
    except OSError as error:
        return Verdict("corrupt audio", f"{clip['audio']}: {error}"), None
    claimed = clip.get("duration")
    if claimed is not None and abs(seconds - claimed) > max(DURATION_TOLERANCE[0], DURATION_TOLERANCE[1] * claimed):
        detail = f"{clip['audio']}: {seconds:.2f} s long, the metadata says {claimed:.2f} s"
        return Verdict("wrong duration", detail), seconds
    return None, seconds


def relative_audio(audio: str, data_root: str | os.PathLike[str], *, where: str = "", what: str = "audio") -> str:
    """``audio`` as a normalised path relative to ``data_root``; ``CorpusError`` when it lies outside of it.

    Decided on the path as written: links that the user placed inside the root are followed.
    """
    if _PLAIN.fullmatch(audio):
        return audio
    root = os.path.abspath(data_root)
    full = os.path.normpath(os.path.join(root, audio))
    if "\0" in audio or os.path.commonpath([root, full]) != root or full == root:
        raise CorpusError(f"{where}: {what} {audio!r} is not a file below the data root {root}")
    return PurePath(os.path.relpath(full, root)).as_posix()


def _opened(path: str, decode: bool) -> tuple[float | None, str | None]:
    """(seconds by the header or None, what is wrong or None) with libsndfile."""
    import soundfile

    Path(path).stat()
    if os.path.isdir(path):
        raise IsADirectoryError(path)
    try:
        with soundfile.SoundFile(path) as file:
            seconds = file.frames / file.samplerate
            if file.frames == 0:
                return seconds, "holds no samples"
            promised = _SHORT.search(file.extra_info)
            if promised and int(promised[1]) not in _UNKNOWN_SIZES and int(promised[1]) > int(promised[2]):
                return seconds, f"{promised[1]} bytes of samples by its header, {promised[2]} in the file"
            if decode:
                return seconds, _decoded_fault(file, seconds)
            file.seek(file.frames - 1)
            if len(file.read(1)) != 1:
                return seconds, f"{seconds:.2f} s by its header, but the end cannot be read"
            return seconds, None
    except soundfile.SoundFileError as error:
        return None, str(error)


def _decoded_fault(file: Any, seconds: float) -> str | None:
    import numpy as np

    frames = 0
    for block in file.blocks(1 << 16, dtype="float32"):
        frames += len(block)
        if not np.isfinite(block).all():
            return f"samples that are not finite before {frames / file.samplerate:.2f} s"
    if frames != file.frames:
        return f"{seconds:.2f} s by its header, {frames / file.samplerate:.2f} s can be read"
    return None
