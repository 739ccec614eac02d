"""Makes a clip of a part of a longer recording, as segments files, TextGrids and subtitles describe it.

The part is written to ``<data root>/<extract_to>/<card>/``, so that every clip has a file of its own.
"""

import logging
from collections.abc import Iterator
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Any

import soundfile

from nemo_desta.recipes.corpora.card_keys import Card
from nemo_desta.recipes.corpora.errors import CorpusError
from nemo_desta.recipes.corpora.written import WrittenAudio

Clip = dict[str, Any]
#: Seconds by which a part may end after its recording, as labels that were rounded do.
_ROUNDED = 0.5

logger = logging.getLogger(__name__)


class Cutter:
    """One card's `CutConfig`, applied to its rows (S samples at the recording's own rate, channels averaged).

    A recording that cannot be read leaves its clips unwritten; they are counted as missing. A clip without ``end``
    reaches to the recording's end.

    Raises ``CorpusError``: a start or end that is no number of seconds, an end before the start, a part outside the
    recording, a folder outside the data root or one that cannot be written.
    """

    def __init__(self, card: Card, root: Path):
        self._root = root
        self._files = WrittenAudio(root, card.cut.extract_to, card.name, "cut")
        self._length = lru_cache(256)(_length)  # many parts of one recording follow each other

    def __call__(self, clips: Iterator[Clip]) -> Iterator[Clip]:
        for clip in clips:
            start, end = (_secs(clip, name) for name in ("cut_start", "cut_end"))
            start, recording = start or 0.0, clip["audio"]
            name = self._files.name(f"{clip['id']}_{start * 1000:.0f}")
            if end is not None and end <= start:
                raise CorpusError(f"clip {clip['id']!r} ends at {end:g} s, before or at its start {start:g} s (cut)")
            clip |= {"audio": name, "duration": self._written(clip["id"], recording, name, start, end)}
            yield clip

    def _written(self, clip_id: str, recording: str, name: str, start: float, end: float | None) -> float | None:
        """Write the part unless it is there. Returns its seconds, None where the recording cannot be read."""
        if (found := self._length(str(self._root / recording))) is None:
            return None if end is None else end - start
        frames, rate = found
        first, last = round(start * rate), frames if end is None else round(end * rate)
        if first >= frames or last > frames + _ROUNDED * rate:
            secs = frames / rate
            raise CorpusError(
                f"clip {clip_id!r} is {start:g} to {last / rate:g} s of {recording}, which has {secs:g} s (cut)"
            )
        last = min(last, frames)
        if not self._files.holds(name, last - first):
            try:
                path = str(self._root / recording)
                samples, _ = soundfile.read(path, start=first, stop=last, dtype="float32", always_2d=True)
                if len(samples) < last - first:
                    raise OSError("it is shorter than its header says")
            except (OSError, soundfile.SoundFileError) as error:
                logger.warning("%s of %s is not written: %s", name, recording, error)
                (self._root / name).unlink(missing_ok=True)
            else:
                self._files.write(name, samples.mean(axis=1), rate)
        return (last - first) / rate


def _length(path: str) -> tuple[int, int] | None:
    """(samples, sampling rate in Hz) of a regular file by its header, or None."""
    try:
        found = soundfile.info(path) if Path(path).is_file() else None
    except (OSError, soundfile.SoundFileError):
        return None
    return None if found is None or found.frames <= 0 else (found.frames, found.samplerate)


def _secs(clip: Clip, name: str) -> float | None:
    """The clip's value ``name`` in seconds, taken out of the clip."""
    value = clip.pop(name, None)
    try:
        if value is None or (isfinite(secs := float(value)) and secs >= 0):
            return None if value is None else secs
    except (TypeError, ValueError):
        pass
    raise CorpusError(f"clip {clip['id']!r}: {name.replace('cut_', 'cut.')} must be seconds, found {value!r:.80}")
