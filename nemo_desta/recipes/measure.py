"""Measured attributes: figures of `acoustics` as words in a clip's attributes, "low" to "high" within its corpus.

Two passes: the first measures every clip into a cache on the disk and finds where the thirds of the corpus meet; the
second adds the words. Killed, it goes on behind the last measured clip; the bins stay as they are once written.
"""

import heapq
import json
import logging
import math
import os
import tempfile
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np

from nemo_desta.data.audio_io import read_audio
from nemo_desta.data.jsonl_log import append_shared, read_shared
from nemo_desta.errors import ConfigError
from nemo_desta.recipes.acoustics import MEASURES, Measurements, measure

__all__ = ["MEASURES", "WORDS", "Measurements", "Quantiles", "add_measured", "measure", "words"]

logger = logging.getLogger(__name__)

#: Measure -> its words, from the lowest figure to the highest (a high ratio of signal to noise is little noise).
WORDS = {
    "pitch": ("low", "medium", "high"),
    "volume": ("quiet", "medium", "loud"),
    "speaking_speed": ("slow", "normal", "fast"),
    "noise_level": ("high", "medium", "low"),
    "silence": ("little", "some", "much"),
}
#: How far apart the middles of the outer thirds must be for their words to be heard: octaves, LU, factor of two, dB,
#: share. A corpus that varies less gets no words for the measure.
AUDIBLE = {"pitch": 0.25, "volume": 3.0, "speaking_speed": 0.25, "noise_level": 6.0, "silence": 0.1}
#: Voices have these, other sounds do not.
OF_SPEECH = ("pitch", "speaking_speed")

_SAMPLE = 10_000


class Quantiles:
    """Where the thirds of a corpus meet. ``bounds``: measure -> (lower, upper), None if the corpus hardly varies."""

    def __init__(self, bounds: Mapping[str, Sequence[float] | None]) -> None:
        self.bounds = {name: None if pair is None else (pair[0], pair[1]) for name, pair in bounds.items()}

    @classmethod
    def of(cls, measured: Iterable[tuple[str, Measurements]], names: Collection[str] = MEASURES) -> "Quantiles":
        """From (clip id, measurements) of a corpus, in any order. Of more than 10,000 clips, 10,000 are drawn by the
        hash of their id: the same whatever the order, and memory stays flat."""
        drawn: list[tuple[int, Measurements]] = []
        for clip_id, figures in measured:
            entry = (-_hash(clip_id), figures)
            (heapq.heappush if len(drawn) < _SAMPLE else heapq.heappushpop)(drawn, entry)
        return cls({name: _bounds(name, [getattr(figures, name) for _, figures in drawn]) for name in names})

    def word(self, name: str, value: float | None) -> str | None:
        """The word for a figure; None where there is no figure or the corpus hardly varies."""
        pair = self.bounds.get(name)
        if value is None or pair is None:
            return None
        return WORDS[name][(value > pair[0]) + (value > pair[1])]

    def save(self, path: str | os.PathLike[str]) -> None:
        temporary = Path(f"{path}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self.bounds, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Quantiles":
        return cls(json.loads(Path(path).read_text(encoding="utf-8")))


def words(figures: Measurements, quantiles: Quantiles) -> dict[str, str]:
    """Measure -> word, of those that have one."""
    found = {name: quantiles.word(name, getattr(figures, name)) for name in MEASURES}
    return {name: word for name, word in found.items() if word is not None}


def add_measured(
    clips: Iterable[Mapping[str, Any]],
    data_root: str | os.PathLike[str],
    names: Sequence[str],
    cache: str | os.PathLike[str],
    *,
    corpus: str | None = None,
) -> Iterator[dict[str, Any]]:
    """The clips of one corpus with measured ``names`` (of `MEASURES`) among their attributes.

    ``cache``: a folder for ``<corpus>.jsonl`` (figures by clip id) and ``<corpus>.bins.json``; several processes may
    share it. ``corpus``: their name, by default the ``source`` of the first clip. An attribute that the clip has
    already stays as it is; pitch and speaking speed are for speech. A clip that cannot be read comes back unchanged:
    the check of the audio names it.

    Raises ``ConfigError`` for an unknown name.
    """
    if unknown := [name for name in names if name not in MEASURES]:
        raise ConfigError(f"describe.measure: {unknown[0]!r} cannot be measured; there is {', '.join(MEASURES)}")
    iterator = iter(clips)
    first = next(iterator, None)
    if first is None or not names:
        yield from ([] if first is None else map(dict, chain([first], iterator)))
        return
    Path(cache).mkdir(parents=True, exist_ok=True)
    stem = Path(cache) / "".join(c if c.isalnum() else "_" for c in corpus or str(first.get("source") or "corpus"))
    figures = _Figures(Path(f"{stem}.jsonl"), names, data_root)
    bins = Path(f"{stem}.bins.json")
    again: Iterable[Mapping[str, Any]] = chain([first], iterator)
    if not bins.exists():
        spool = tempfile.TemporaryFile("w+", dir=cache, encoding="utf-8")
        measured = ((clip["id"], figures.of(clip)) for clip in _spooled(again, spool))
        Quantiles.of(((name, one) for name, one in measured if one is not None), names).save(bins)
        figures.reload()
        again = _unspooled(spool)
    quantiles = Quantiles.load(bins)
    for clip in again:
        one = figures.of(clip)
        new = {} if one is None else words(one, quantiles)
        yield {
            **clip,
            "attributes": {**new, **{k: v for k, v in (clip.get("attributes") or {}).items() if v is not None}},
        }
    figures.report()


class _Figures:
    """Measurements by clip id: from the cache where they are there, else measured and appended to it. 8 + 20 bytes of
    memory per clip that was in the file when it was read."""

    def __init__(self, path: Path, names: Sequence[str], data_root: str | os.PathLike[str]) -> None:
        self._path, self._names, self._root = path, tuple(names), Path(data_root)
        self._unreadable: Counter[str] = Counter()
        self.reload()

    def of(self, clip: Mapping[str, Any]) -> Measurements | None:
        """None: the clip cannot be read."""
        key = _hash(clip["id"])
        at = int(np.searchsorted(self._keys, np.uint64(key)))
        if at < len(self._keys) and self._keys[at] == key:
            return Measurements(*(None if math.isnan(value) else float(value) for value in self._values[at]))
        one = self._measure(clip)
        if one is not None:
            append_shared(self._path, {"id": clip["id"], **{name: getattr(one, name) for name in self._names}})
        return one

    def reload(self) -> None:
        """Read what the cache holds by now; lines that a kill left half-written are passed over."""
        self._unreadable.clear()
        keys, values = array("Q"), array("f")
        for row in read_shared(self._path):
            try:
                key, figures = _hash(row["id"]), [row[n] if n in self._names else None for n in MEASURES]
            except KeyError:  # measured without a name that is wanted now
                continue
            keys.append(key)
            values.extend(math.nan if value is None else value for value in figures)
        found = np.array(keys, dtype=np.uint64)
        order = np.argsort(found, kind="stable")
        self._keys = found[order]
        self._values = np.array(values, dtype=np.float32).reshape(-1, len(MEASURES))[order]

    def report(self) -> None:
        for reason, count in self._unreadable.items():
            logger.warning("measured attributes: %d clips could not be read (%s)", count, reason)

    def _measure(self, clip: Mapping[str, Any]) -> Measurements | None:
        wanted = [name for name in self._names if name not in OF_SPEECH or clip.get("domain") == "speech"]
        try:
            audio, sampling_rate = read_audio(self._root / clip["audio"], duration=clip.get("duration"))
            return measure(audio.mean(axis=1), sampling_rate, clip.get("transcript"), names=wanted)
        except ValueError as error:
            self._unreadable[type(error).__name__] += 1
            logger.info("not measured: %s (%s)", clip["id"], error)
            return None


def _bounds(name: str, values: Iterable[float | None]) -> tuple[float, float] | None:
    known = [value for value in values if value is not None]
    if len(known) < 3:
        return None
    low, lower, upper, high = (float(q) for q in np.quantile(known, (1 / 6, 1 / 3, 2 / 3, 5 / 6)))
    apart = math.log2(high / low) if name in ("pitch", "speaking_speed") else high - low
    if apart < AUDIBLE[name]:
        logger.info("%s hardly varies in this corpus (%.3g to %.3g): no words for it", name, low, high)
        return None
    return lower, upper


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _spooled(clips: Iterable[Mapping[str, Any]], spool: IO[str]) -> Iterator[Mapping[str, Any]]:
    for clip in clips:
        spool.write(json.dumps(dict(clip), default=str) + "\n")  # str: dates and decimals, as descriptions say them
        yield clip


def _unspooled(spool: IO[str]) -> Iterator[dict[str, Any]]:
    spool.seek(0)
    with spool:
        yield from map(json.loads, spool)
