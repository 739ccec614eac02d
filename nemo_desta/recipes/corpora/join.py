"""Makes one clip of several utterances: turns of a dialogue, or pairs of the same or of different speakers.

ALARM describes such clips (its VoxCeleb1 pairs, AMI, DailyTalk, MELD): one line with times for each utterance, then
what is known about the speakers. The audio is written to ``<data root>/<extract_to>/<card>/``, so that every clip has
a file; a file that is there already is kept.
"""

import logging
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import groupby
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import soundfile

from nemo_desta.recipes.corpora.audio import check_audio, relative_audio
from nemo_desta.recipes.corpora.card import Card
from nemo_desta.recipes.corpora.errors import CorpusError

Clip = dict[str, Any]
_HEADER = 44  # bytes of a WAV file before its 16-bit samples
_MOST = 2**30  # samples of an utterance; a WAV file holds at most twice as many
_PLAIN = re.compile(r"\w[\w.-]{0,49}(?:-\w[\w.-]{0,49})?", re.ASCII)  # names that are file names as they are

logger = logging.getLogger(__name__)


class Part(NamedTuple):
    """An utterance in a joined clip. ``begin``: seconds from the clip's start; ``samples`` at ``rate`` Hz."""

    clip: Clip
    begin: float
    samples: int
    rate: int

    @property
    def end(self) -> float:
        return self.begin + self.samples / self.rate


class Joiner:
    """One card's `JoinConfig`, applied to its utterances.

    An utterance that `check_audio` or libsndfile refuses is yielded alone, so that it is counted. Damage that only
    decoding finds leaves the joined file unwritten, and its clip is counted as missing.

    Raises ``CorpusError``: files of one clip with different sampling rates, an utterance without a start where
    ``start`` is set, one without a speaker in pairs, rows of one dialogue that do not follow each other, a folder
    outside the data root or one that cannot be written.
    """

    def __init__(self, card: Card, root: Path):
        self._config, self._root = card.join, root
        where = f"card {card.name}: join"
        self._folder = relative_audio(f"{card.join.extract_to}/{card.name}", root, where=where, what="extract_to")
        real = os.path.realpath(root / self._folder)
        if os.path.commonpath([os.path.realpath(root), real]) != os.path.realpath(root):
            raise CorpusError(f"{where}: extract_to leads to {real}; it must be a folder below the data root")

    def __call__(self, utterances: Iterator[Clip]) -> Iterator[Clip]:
        return self._dialogues(utterances) if self._config.kind == "dialogue" else self._pairs(utterances)

    def _dialogues(self, utterances: Iterator[Clip]) -> Iterator[Clip]:
        """Memory: the utterances of one dialogue, and a hash of each dialogue's name."""
        seen: set[int] = set()
        for group, together in groupby(utterances, key=lambda clip: clip.get("group") or clip["id"]):
            if hash(group) in seen:
                raise CorpusError(f"dialogue {group!r}: its rows must follow each other, but others are between them")
            seen.add(hash(group))
            turns = list(together)
            if self._config.start is not None:
                turns.sort(key=_start)
            number, parts = 0, []
            for turn in turns:
                size = self._size(turn)
                if parts and (size is None or self._is_full(turn, parts)):
                    yield self._joined(f"{group}_{number}", parts, {})
                    number, parts = number + 1, []
                if size is None:
                    yield _alone(turn)
                else:
                    parts.append(Part(turn, self._begin(turn, parts), *size))
            if parts:
                yield self._joined(f"{group}_{number}", parts, {})

    def _is_full(self, turn: Clip, parts: Sequence[Part]) -> bool:
        """Whether ``turn`` starts a new clip: the last one is long enough, or it would start too late there."""
        end = max(part.end for part in parts)
        return max(end, self._begin(turn, parts)) >= self._config.max_secs

    def _begin(self, turn: Clip, parts: Sequence[Part]) -> float:
        """Where the next utterance of a clip begins, in seconds."""
        if not parts:
            return 0.0
        if self._config.start is None:
            return parts[-1].end
        return _start(turn) - _start(parts[0].clip)

    def _pairs(self, utterances: Iterator[Clip]) -> Iterator[Clip]:
        """Memory: every utterance as JSON. Both speakers of a pair are in one split."""
        of_split: dict[Any, dict[str, list[bytes]]] = {}
        gender: dict[str, Any] = {}
        for clip in utterances:
            if (speaker := clip.get("speaker_id")) is None:
                raise CorpusError(f"utterance {clip['id']!r} has no speaker_id, so it has no pairs (join.kind)")
            of_split.setdefault(clip.get("split"), {}).setdefault(speaker, []).append(orjson.dumps(clip))
            gender[speaker] = clip["attributes"].get("gender")
        told: set[str] = set()
        for speakers in of_split.values():
            for speaker in speakers:
                for pair in self._drawn(speaker, speakers, gender):
                    first, second = map(orjson.loads, pair)
                    sizes = {clip["id"]: self._size(clip) for clip in (first, second)}
                    for clip in (first, second):
                        if sizes[clip["id"]] is None and clip["id"] not in told:
                            told.add(clip["id"])
                            yield _alone(clip)
                    if None not in sizes.values():
                        before = Part(first, 0.0, *sizes[first["id"]])
                        after = Part(second, before.end, *sizes[second["id"]])
                        same = "yes" if first["speaker_id"] == second["speaker_id"] else "no"
                        name = f"{first['id']}-{second['id']}"
                        yield self._joined(name, [before, after], {"same_speaker": same})

    def _drawn(
        self, speaker: str, speakers: Mapping[str, Sequence[bytes]], gender: Mapping[str, Any]
    ) -> list[tuple[bytes, bytes]]:
        """Pairs of one speaker. They do not depend on the order of the speakers."""
        draw, own = random.Random(f"{self._config.seed}\n{speaker}"), speakers[speaker]
        order = draw.sample(own, len(own))
        pairs = list(zip(order, order[1:] + order[:1], strict=True)) if len(order) > 1 else []
        del pairs[self._config.num_pairs :]
        others = sorted(other for other in speakers if other != speaker)
        for kind in sorted({gender[other] for other in others}, key=str):
            alike = [other for other in others if gender[other] == kind]
            for other in draw.sample(alike, min(self._config.num_pairs, len(alike))):
                pairs.append((draw.choice(own), draw.choice(speakers[other])))
        return pairs

    def _size(self, clip: Clip) -> tuple[int, int] | None:
        """(samples, sampling rate in Hz) of an utterance by its header; None if it cannot be used."""
        if check_audio(clip, self._root)[0] is not None:
            return None
        try:
            found = soundfile.info(str(self._root / clip["audio"]))
        except (OSError, soundfile.SoundFileError):
            return None
        return (found.frames, found.samplerate) if 0 < found.frames < _MOST else None

    def _joined(self, name: str, parts: Sequence[Part], attributes: Mapping[str, Any]) -> Clip:
        first = parts[0].clip
        for part in parts:
            if part.rate != parts[0].rate:
                raise CorpusError(
                    f"{part.clip['audio']} has {part.rate} Hz and {first['audio']} {parts[0].rate} Hz; files of one "
                    "joined clip need one sampling rate"
                )
        file = name if _PLAIN.fullmatch(name) else blake2b(name.encode(), digest_size=12).hexdigest()
        audio = f"{self._folder}/{file}.wav"
        num_samples = self._write(self._root / audio, parts)
        segments, speakers = [], {}
        for part in parts:
            speaker, own = part.clip.get("speaker_id"), {}
            of_speaker = {} if speaker is None else speakers.setdefault(speaker, {})
            for key, value in part.clip["attributes"].items():
                (own if speaker is None or key in self._config.segment else of_speaker)[key] = value
            times = {"start": round(part.begin, 3), "end": round(part.end, 3)}
            said = {"transcript": part.clip.get("transcript"), "speaker": speaker}
            segments.append({**times, **said, "attributes": own})
        kept = {key: first[key] for key in ("domain", "source", "language", "group", "split") if key in first}
        about = {"attributes": dict(attributes), "segments": segments, "speakers": speakers}
        return {"id": name, "audio": audio, "duration": num_samples / parts[0].rate, **kept, **about}

    def _write(self, path: Path, parts: Sequence[Part]) -> int:
        """Write the joined audio unless it is there; overlapping utterances are added up. Returns its samples."""
        begins = [round(part.begin * part.rate) for part in parts]
        total = max(begin + part.samples for begin, part in zip(begins, parts, strict=True))
        if path.is_file() and path.stat().st_size == _HEADER + 2 * total:
            return total
        mixed = np.zeros(total, dtype=np.float32)
        try:
            for begin, part in zip(begins, parts, strict=True):
                audio, _ = soundfile.read(str(self._root / part.clip["audio"]), dtype="float32", always_2d=True)
                if len(audio) < part.samples:
                    raise OSError(f"{part.clip['audio']} is shorter than its header says")
                mixed[begin : begin + part.samples] += audio[: part.samples].mean(axis=1)
        except (OSError, soundfile.SoundFileError) as error:
            logger.warning("%s is not written: %s", path, error)
            path.unlink(missing_ok=True)
            return total
        partial = path.with_name(f"{path.stem}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(partial, np.clip(mixed, -1.0, 1.0), parts[0].rate, subtype="PCM_16", format="WAV")
            os.replace(partial, path)
        except (OSError, soundfile.SoundFileError) as error:
            raise CorpusError(
                f"cannot write {path}: {error}; set join.extract_to to a folder below the data root that can be "
                "written"
            ) from None
        return total


def _start(turn: Clip) -> float:
    """Seconds of a recording at which an utterance starts."""
    try:
        if isfinite(start := float(turn.get("start"))):
            return start
    except (TypeError, ValueError):
        pass
    raise CorpusError(
        f"utterance {turn['id']!r} has no start in seconds (join.start), found {turn.get('start')!r:.80}"
    )


def _alone(clip: Clip) -> Clip:
    """The utterance as a clip of its own."""
    clip.pop("start", None)
    return clip
