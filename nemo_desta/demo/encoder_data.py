"""Clips, augmentation and batches for pre-training the demo's stand-in encoders.

Letters: B clips, S samples.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
import torch
from torch.nn.utils.rnn import pad_sequence

from nemo_desta.data.audio_io import load_audio, normalize_level
from nemo_desta.demo.world import SENTENCES, TASKS, gold
from nemo_desta.recipes.corpora import load_corpus

SAMPLING_RATE = 16000
LEVEL_DBFS = -25.0  # the pipeline normalises every clip to this level
WORD_SECS = 0.96  # words are cut to this

#: Classification heads -> classes. "sentence" is the transcript, if it is one of the world's sentences.
HEADS: dict[str, tuple[str, ...]] = {
    name: TASKS[name].values
    for name in ("word", "gender", "emotion", "language", "speaking_speed", "pitch", "sound_class", "instrument")
    + ("tempo", "melody", "domain")
} | {"sentence": tuple(text.rstrip(".") for text in chain.from_iterable(SENTENCES.values()))}


@dataclass(frozen=True)
class Clip:
    """One clip in memory: int16 (S,) at 16 kHz, and class numbers by head (-1: unknown)."""

    audio: np.ndarray
    labels: tuple[int, ...]
    source: str
    is_word: bool


@dataclass(frozen=True)
class Batch:
    """audio: (B, S) float32 at ``LEVEL_DBFS``, padded with zeros; audio_lens: (B,); labels: (B, heads), -1 unknown."""

    audio: torch.Tensor
    audio_lens: torch.Tensor
    labels: torch.Tensor


def load_clips(
    manifests: Iterable[str | os.PathLike[str]], data_root: str | os.PathLike[str], split: str
) -> list[Clip]:
    """All clips of one split."""
    clips = []
    for row in chain.from_iterable(load_corpus(manifest, data_root) for manifest in manifests):
        if row.get("split") != split:
            continue
        audio = load_audio(Path(data_root) / row["audio"], SAMPLING_RATE, duration=row.get("duration"))
        audio = np.round(audio * (32767 / max(1.0, np.abs(audio).max()))).astype(np.int16)
        is_word = gold(row, "word") is not None
        source = f"{row['source']}/{'word' if is_word else row['domain']}"
        clips.append(Clip(audio, labels_of(row), source, is_word))
    return clips


def labels_of(row: dict[str, Any]) -> tuple[int, ...]:
    """Class numbers of a manifest row in the order of ``HEADS``."""
    labels = []
    for head, classes in HEADS.items():
        value = gold(row, "transcript" if head == "sentence" else head)
        labels.append(classes.index(value) if value in classes else -1)
    return tuple(labels)


def training_batches(clips: Sequence[Clip], seed: int, *, words: int = 64, others: int = 24) -> Iterator[Batch]:
    """Endless augmented batches, alternately of words and of other clips (a random crop of 2.5 s or, rarely, 5 s).

    The weight of a source is the square root of its size, so that small corpora are over-sampled; recordings have
    twice the weight of generated clips.
    """
    rng = np.random.default_rng([seed, 7])
    groups = {True: _by_source(c for c in clips if c.is_word), False: _by_source(c for c in clips if not c.is_word)}
    kinds = [kind for kind in (True, False) if groups[kind]]
    step = 0
    while True:
        kind = kinds[step % len(kinds)]
        sources = list(groups[kind].values())
        weights = np.array([len(s) ** 0.5 * (1 if s[0].source.startswith("demo/") else 2) for s in sources])
        picks = rng.choice(len(sources), size=words if kind else others, p=weights / weights.sum())
        chosen = [sources[i][rng.integers(len(sources[i]))] for i in picks]
        secs = WORD_SECS if kind else rng.choice((2.5, 5.0), p=(0.85, 0.15))
        yield collate([(augment(clip, rng, secs), clip.labels) for clip in chosen])
        step += 1


def plain_batches(clips: Sequence[Clip], size: int = 32) -> Iterator[Batch]:
    """Every clip once, without augmentation, at most 5 s of it."""
    for start in range(0, len(clips), size):
        part = clips[start : start + size]
        yield collate([(clip.audio[: 5 * SAMPLING_RATE] / 32768.0, clip.labels) for clip in part])


def collate(items: Sequence[tuple[np.ndarray, tuple[int, ...]]]) -> Batch:
    """Normalise levels and pad with zeros."""
    audios = [torch.from_numpy(normalize_level(audio.astype(np.float32), LEVEL_DBFS)) for audio, _ in items]
    lens = torch.tensor([len(audio) for audio in audios])
    return Batch(pad_sequence(audios, batch_first=True), lens, torch.tensor([labels for _, labels in items]))


def augment(clip: Clip, rng: np.random.Generator, max_secs: float) -> np.ndarray:
    """Augment a clip: speed, crop, silence, frequency response, telephone band, room, noise; float32 (S',)."""
    audio = clip.audio.astype(np.float32)
    spread = 0.18 if clip.is_word else 0.05
    speed = np.exp(rng.uniform(-spread, spread))
    audio = np.interp(np.arange(0, len(audio) - 1, speed), np.arange(len(audio)), audio).astype(np.float32)
    limit = int(max_secs * SAMPLING_RATE)
    if clip.is_word:
        before, after = rng.integers(0, 1600, 2) * (rng.random(2) < 0.5)
        audio = np.pad(audio, (before, after))[:limit]
    elif len(audio) > limit:
        start = rng.integers(len(audio) - limit + 1)
        audio = audio[start : start + limit]
    size = scipy.fft.next_fast_len(len(audio) + SAMPLING_RATE // 8, real=True)
    spectrum = scipy.fft.rfft(audio, size) * _response(rng, size, telephone=clip.is_word and rng.random() < 0.5)
    if rng.random() < 0.2:
        room = rng.standard_normal(int(rng.uniform(0.02, 0.12) * SAMPLING_RATE), dtype=np.float32)
        room *= np.exp(-5 * np.arange(len(room), dtype=np.float32) / len(room))
        room[0] = rng.uniform(3, 8)
        spectrum *= scipy.fft.rfft(room, size)
    audio = scipy.fft.irfft(spectrum, size)[: len(audio)]
    noise = rng.standard_normal(size - size % 2, dtype=np.float32).view(np.complex64)
    noise = scipy.fft.irfft(noise * _response(rng, 2 * len(noise) - 2), 2 * len(noise) - 2)[: len(audio)]
    noise = np.resize(noise, len(audio))
    share = 10 ** (-rng.uniform(8, 45) / 20)
    return audio + noise * np.float32(share * np.linalg.norm(audio) / (np.linalg.norm(noise) + 1e-9))


def mask_features(features: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """features: (B, F, T) -> the same with a band and a stretch of time of each clip set to its mean (SpecAugment)."""
    features = features.clone()
    num_bands, num_frames = features.shape[1:]
    for item in features:
        fill = item.mean()
        for _ in range(rng.integers(0, 3)):
            width = rng.integers(1, num_bands // 6)
            start = rng.integers(num_bands - width)
            item[start : start + width] = fill
        width = rng.integers(0, max(2, num_frames // 8))
        start = rng.integers(num_frames - width + 1)
        item[:, start : start + width] = fill
    return features


def _by_source(clips: Iterable[Clip]) -> dict[str, list[Clip]]:
    groups: dict[str, list[Clip]] = {}
    for clip in clips:
        groups.setdefault(clip.source, []).append(clip)
    return groups


def _response(rng: np.random.Generator, size: int, telephone: bool = False) -> np.ndarray:
    """A smooth random frequency response, about +-6 dB; ``telephone``: nothing above 3.4 to 4 kHz."""
    hertz = np.linspace(0, SAMPLING_RATE / 2, size // 2 + 1, dtype=np.float32)
    knots = np.array([0, 150, 400, 1000, 2200, 4000, 8000])
    gain = 10 ** (np.interp(hertz, knots, rng.normal(0, 3, len(knots))) / 20)
    if telephone:
        gain *= np.clip((rng.uniform(3400, 4000) - hertz) / 150 + 1, 0, 1)
    return gain.astype(np.float32)
