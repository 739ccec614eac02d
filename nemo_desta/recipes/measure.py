"""Adds measured attributes to clips: the values of `acoustics` as words, from "low" to "high" within the corpus.

The first pass measures every clip, caches the values on disk, and finds the thirds of the corpus; the second pass adds
the words. After a kill, the first pass resumes after the last measured clip. The thirds are computed only once.
"""

import heapq
import json
import logging
import math
import os
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nemo_desta.data.audio_io import read_audio
from nemo_desta.data.jsonl_log import append_shared, read_shared
from nemo_desta.errors import ConfigError
from nemo_desta.recipes.acoustics import MEASURES, Measurements, measure
from nemo_desta.recipes.hashes import hash64
from nemo_desta.recipes.pipeline.folder import write_json

__all__ = ["MEASURES", "WORDS", "Measurements", "Quantiles", "add_measured", "measure", "words"]

logger = logging.getLogger(__name__)

#: Measure -> its words, from the lowest value to the highest (a high signal-to-noise ratio is a low noise level).
WORDS = {
    "pitch": ("low", "medium", "high"),
    "volume": ("quiet", "medium", "loud"),
    "speaking_speed": ("slow", "normal", "fast"),
    "noise_level": ("high", "medium", "low"),
    "silence": ("little", "some", "much"),
}
#: Minimum distance between the medians of the lowest and the highest third, in octaves, LU, octaves, dB and fraction.
#: In a corpus that varies less, the words would not be audible, so clips get no word.
AUDIBLE = {"pitch": 0.25, "volume": 3.0, "speaking_speed": 0.25, "noise_level": 6.0, "silence": 0.1}
#: Measures of voices; other sounds do not have them.
OF_SPEECH = ("pitch", "speaking_speed")

_SAMPLE = 10_000


class Quantiles:
    """The terciles of a corpus. ``bounds``: measure -> (lower, upper), None if the corpus hardly varies."""

    def __init__(self, bounds: Mapping[str, Sequence[float] | None]) -> None:
        self.bounds = {name: None if pair is None else (pair[0], pair[1]) for name, pair in bounds.items()}

    @classmethod
    def of(cls, measured: Iterable[tuple[str, Measurements]], names: Collection[str] = MEASURES) -> "Quantiles":
        """From (clip id, measurements) of a corpus, in any order.

        Of more than 10,000 clips, the 10,000 with the lowest hashes of their ids are used, so the order does not
        matter and memory is bounded.
        """
        drawn: list[tuple[int, Measurements]] = []
        for clip_id, figures in measured:
            entry = (-hash64(clip_id), figures)
            (heapq.heappush if len(drawn) < _SAMPLE else heapq.heappushpop)(drawn, entry)
        return cls({name: _bounds(name, [getattr(figures, name) for _, figures in drawn]) for name in names})

    def save(self, path: Path) -> None:
        write_json(path, self.bounds)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Quantiles":
        return cls(json.loads(Path(path).read_text(encoding="utf-8")))


def words(figures: Measurements, quantiles: Quantiles) -> dict[str, str]:
    """Measure -> word, of the measures that have a value and vary in the corpus."""
    found = {}
    for name, value in figures._asdict().items():
        if value is not None and (pair := quantiles.bounds.get(name)) is not None:
            found[name] = WORDS[name][(value > pair[0]) + (value > pair[1])]
    return found


def add_measured(
    clips: Iterable[Mapping[str, Any]],
    data_root: str | os.PathLike[str],
    names: Sequence[str],
    cache: str | os.PathLike[str],
    *,
    corpus: str | None = None,
) -> Iterator[dict[str, Any]]:
    """The clips of one corpus with measured ``names`` (of `MEASURES`) among their attributes.

    ``clips``: a collection that can be iterated twice, such as a `Corpus`. ``cache``: a folder for ``<corpus>.jsonl``
    (values by clip id) and ``<corpus>.bins.json``; several processes may share it. ``corpus``: default: the ``source``
    of the first clip. An attribute that the clip already has is kept; pitch and speaking speed are for speech only. A
    clip that cannot be read is yielded unchanged: the check of the audio reports it.

    Raises ``ConfigError`` for an unknown name, ``TypeError`` for an iterator.
    """
    if unknown := [name for name in names if name not in MEASURES]:
        raise ConfigError(f"describe.measure: {unknown[0]!r} cannot be measured; there is {', '.join(MEASURES)}")
    if iter(clips) is clips:
        raise TypeError(f"clips are read twice: expected a list or a corpus, found the iterator {clips!r}")
    first = next(iter(clips), None)
    if first is None or not names:
        yield from map(dict, clips)
        return
    Path(cache).mkdir(parents=True, exist_ok=True)
    stem = Path(cache) / "".join(c if c.isalnum() else "_" for c in corpus or str(first.get("source") or "corpus"))
    cached = _Cache(Path(f"{stem}.jsonl"), names, data_root)
    bins = Path(f"{stem}.bins.json")
    if not bins.exists():
        measured = ((clip["id"], cached.of(clip)) for clip in clips)
        Quantiles.of(((name, one) for name, one in measured if one is not None), names).save(bins)
        cached.reload()
    quantiles = Quantiles.load(bins)
    for clip in clips:
        one = cached.of(clip)
        new = {} if one is None else words(one, quantiles)
        known = {name: value for name, value in (clip.get("attributes") or {}).items() if value is not None}
        yield {**clip, "attributes": {**new, **known}}
    cached.report()


class _Cache:
    """Measurements by clip id: those in the cache file (28 bytes each in memory), others measured and appended."""

    def __init__(self, path: Path, names: Sequence[str], data_root: str | os.PathLike[str]) -> None:
        self._path, self._names, self._root = path, tuple(names), Path(data_root)
        self._unreadable: Counter[str] = Counter()
        self.reload()

    def of(self, clip: Mapping[str, Any]) -> Measurements | None:
        """None: the clip cannot be read."""
        key = hash64(clip["id"])
        at = int(np.searchsorted(self._keys, np.uint64(key)))
        if at < len(self._keys) and self._keys[at] == key:
            return Measurements(*(None if math.isnan(value) else float(value) for value in self._values[at]))
        wanted = [name for name in self._names if name not in OF_SPEECH or clip.get("domain") == "speech"]
        try:
            audio, sampling_rate = read_audio(self._root / clip["audio"], duration=clip.get("duration"))
            one = measure(audio.mean(axis=1), sampling_rate, clip.get("transcript"), names=wanted)
        except ValueError as error:
            self._unreadable[type(error).__name__] += 1
            logger.info("not measured: %s (%s)", clip["id"], error)
            return None
        append_shared(self._path, {"id": clip["id"], **{name: getattr(one, name) for name in self._names}})
        return one

    def reload(self) -> None:
        """Read the cache file; lines that a kill left incomplete are skipped."""
        self._unreadable.clear()
        keys, values = array("Q"), array("f")
        for row in read_shared(self._path):
            try:
                key, figures = hash64(row["id"]), [row[n] if n in self._names else None for n in MEASURES]
            except KeyError:  # an earlier run measured fewer names
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
