"""Makes one clip of several utterances: turns of a dialogue, pairs of speakers, or mixtures of them.

ALARM describes such clips (VoxCeleb1 pairs, AMI, DailyTalk, MELD, LibriMix): one line with times for each utterance,
then what is known about the speakers. The audio is written to ``<data root>/<extract_to>/<card>/``, so that every clip
has a file; a file that is there already is kept.
"""

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import soundfile

from nemo_desta.recipes.corpora.audio import check_audio
from nemo_desta.recipes.corpora.card_keys import Card
from nemo_desta.recipes.corpora.errors import CorpusError
from nemo_desta.recipes.corpora.written import WrittenAudio

Clip = dict[str, Any]
_MOST = 2**30  # samples of an utterance; a WAV file holds at most twice as many

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
    ``start`` is set, one without a speaker in pairs or mixtures, rows of one dialogue that do not follow each other, a
    folder outside the data root or one that cannot be written.
    """

    def __init__(self, card: Card, root: Path):
        self._config, self._root = card.join, root
        self._files = WrittenAudio(root, card.join.extract_to, card.name, "join")

    def __call__(self, utterances: Iterator[Clip]) -> Iterator[Clip]:
        return self._dialogues(utterances) if self._config.kind == "dialogue" else self._drawn_clips(utterances)

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

    def _drawn_clips(self, utterances: Iterator[Clip]) -> Iterator[Clip]:
        """Pairs or mixtures. Memory: every utterance as JSON. All speakers of a clip are in one split."""
        of_split: dict[Any, dict[str, list[bytes]]] = {}
        gender: dict[str, Any] = {}
        mixtures = self._config.kind == "mixtures"
        for clip in utterances:
            if (speaker := clip.get("speaker_id")) is None:
                raise CorpusError(f"utterance {clip['id']!r} has no speaker_id, so it is in no clip (join.kind)")
            of_split.setdefault(clip.get("split"), {}).setdefault(speaker, []).append(orjson.dumps(clip))
            gender[speaker] = clip["attributes"].get("gender")
        told: set[str] = set()
        for speakers in of_split.values():
            for speaker in speakers:
                drawn = self._mixed(speaker, speakers) if mixtures else self._drawn(speaker, speakers, gender)
                for clips in (list(map(orjson.loads, utterances)) for utterances in drawn):
                    sizes = {clip["id"]: self._size(clip) for clip in clips}
                    for clip in clips:
                        if sizes[clip["id"]] is None and clip["id"] not in told:
                            told.add(clip["id"])
                            yield _alone(clip)
                    if None in sizes.values():
                        continue
                    parts: list[Part] = []
                    for clip in clips:
                        begin = parts[-1].end if parts and not mixtures else 0.0
                        parts.append(Part(clip, begin, *sizes[clip["id"]]))
                    same = "yes" if clips[0]["speaker_id"] == clips[-1]["speaker_id"] else "no"
                    about = {} if mixtures else {"same_speaker": same}
                    yield self._joined("-".join(clip["id"] for clip in clips), parts, about)

    def _mixed(self, speaker: str, speakers: Mapping[str, Sequence[bytes]]) -> list[tuple[bytes, ...]]:
        """Mixtures of one speaker with one or more others. They do not depend on the order of the speakers."""
        draw, own = random.Random(f"{self._config.seed}\n{speaker}"), speakers[speaker]
        others = sorted(other for other in speakers if other != speaker)
        most = min(self._config.num_speakers, len(others) + 1)
        mixtures = []
        for first in draw.sample(own, min(self._config.num_pairs, len(own))) if most > 1 else ():
            chosen = draw.sample(others, draw.randint(2, most) - 1)
            mixtures.append((first, *(draw.choice(speakers[other]) for other in chosen)))
        return mixtures

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
        audio = self._files.name(name)
        num_samples = self._write(audio, parts)
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

    def _write(self, audio: str, parts: Sequence[Part]) -> int:
        """Write the joined audio unless it is there; overlapping utterances are added up. Returns its samples.

        A mixture whose peak is above 1 is scaled to 1.
        """
        begins = [round(part.begin * part.rate) for part in parts]
        total = max(begin + part.samples for begin, part in zip(begins, parts, strict=True))
        if self._files.holds(audio, total):
            return total
        mixed = np.zeros(total, dtype=np.float32)
        try:
            for begin, part in zip(begins, parts, strict=True):
                found, _ = soundfile.read(str(self._root / part.clip["audio"]), dtype="float32", always_2d=True)
                if len(found) < part.samples:
                    raise OSError(f"{part.clip['audio']} is shorter than its header says")
                mixed[begin : begin + part.samples] += found[: part.samples].mean(axis=1)
        except (OSError, soundfile.SoundFileError) as error:
            logger.warning("%s is not written: %s", audio, error)
            (self._root / audio).unlink(missing_ok=True)
            return total
        if self._config.kind == "mixtures":
            mixed /= max(1.0, float(np.abs(mixed).max()))
        self._files.write(audio, mixed, parts[0].rate)
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
