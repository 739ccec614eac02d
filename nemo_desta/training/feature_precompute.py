"""Encodes every clip of a data section once, before training: its size beforehand, a bar, and resume after a kill.

A clip that is in the cache is skipped, so a killed run loses one batch. Letters: A clips of a batch, S samples.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from nemo_desta.config import FeatureCacheConfig
from nemo_desta.data.audio_io import AudioFile, count_samples, load_audio
from nemo_desta.data.rows import audio_entries
from nemo_desta.data.settings import DataSettings
from nemo_desta.data.sources import open_input_cfg
from nemo_desta.errors import ConfigError, RowError, row_guard
from nemo_desta.perception.encoders import FrozenEncoder
from nemo_desta.perception.feature_cache import GB, clip_key, feature_bytes
from nemo_desta.perception.fused import FusedPerception
from nemo_desta.perception.resample import resampled_length
from nemo_desta.progress import Progress
from nemo_desta.types import Rates

logger = logging.getLogger(__name__)

#: Seconds of audio, padding included, that are encoded and stored together.
BATCH_SECS = 240
#: Clips of a batch. Whisper encodes 30 s for each, however short it is.
MAX_CLIPS = 16
#: Threads that load clips.
NUM_LOADERS = 2


@dataclass(frozen=True)
class Cost:
    """What the features of ``num_clips`` different clips of ``secs`` seconds in all take on disk."""

    num_clips: int
    secs: float
    num_bytes: int

    @property
    def bytes_per_hour(self) -> float:
        return self.num_bytes / max(self.secs, 1e-9) * 3600

    def __str__(self) -> str:
        return (
            f"{self.num_clips:,} clips, {self.secs / 3600:,.2f} h of audio: {self.num_bytes / GB:,.3f} GB "
            f"({self.bytes_per_hour / GB:.3f} GB per hour of audio)"
        )


Clips = Mapping[AudioFile, float]


def list_clips(data: DataSettings, *, audio_role: str | None, sampling_rate: int, limit: int | None = None) -> Clips:
    """Every different audio file of training and validation rows, with its seconds; bad rows are left out.

    ``limit``: rows that are read of each source, spread evenly.

    Raises:
        ConfigError: a source that cannot be opened. FileNotFoundError: no such file.
    """
    found: dict[AudioFile, float] = {}
    for loader in filter(None, [data.train, *data.validation.values()]):
        for source, _ in open_input_cfg(loader.input_cfg, data.audio_roots, audio_role=audio_role):
            for index in range(0, len(source), max(1, len(source) // (limit or len(source) or 1))):
                try:
                    with row_guard():
                        row = source.row(index)
                        for file, entry in zip(source.audio_files(index, row), audio_entries(row), strict=True):
                            if file not in found:
                                secs = entry.get("duration") or count_samples(file, sampling_rate) / sampling_rate
                                found[file] = secs
                except RowError:
                    continue
    return found


def cost_of(
    secs: Sequence[float], encoders: Mapping[str, FrozenEncoder], settings: FeatureCacheConfig, *, sampling_rate: int
) -> Cost:
    """The size of the features of clips of ``secs`` seconds, without the shards' headers."""
    num_bytes = 0
    for encoder in encoders.values():
        for one in secs:
            length = resampled_length(max(1, round(one * sampling_rate)), sampling_rate, encoder.sampling_rate)
            num_bytes += feature_bytes(encoder, length, settings.dtype)
    return Cost(len(secs), sum(secs), num_bytes)


def precompute(
    perception: FusedPerception,
    clips: Clips,
    *,
    device: torch.device,
    rank: int = 0,
    num_ranks: int = 1,
) -> int:
    """Encode the clips that the perception's cache does not hold; returns how many clips were encoded.

    Every rank takes its own share. A clip that cannot be read is logged and left out, as in training.

    Raises:
        ConfigError: the features do not fit into ``max_gb``, so the first ones would be removed again.
    """
    cache, rate, rates = perception.feature_cache, perception.sampling_rate, perception.audio_rates
    cost = cost_of(list(clips.values()), perception.encoders, cache.settings, sampling_rate=rate)
    limit = cache.settings.max_gb
    if limit is not None and cost.num_bytes > limit * GB:
        raise ConfigError(
            f"feature_cache: {cost} do not fit into max_gb={limit:g}, so features would be removed before they are "
            "read; raise max_gb, take fewer layers or dtype=bfloat16, or switch precompute off"
        )
    logger.info("feature cache: %s, in %s", cost, cache.folder)
    own = sorted(clips, key=lambda file: (clips[file], str(file)))[rank::num_ranks]
    num_encoded = num_seen = 0
    bar = Progress("encoding", sum(clips[file] for file in own), unit="s of audio", shown=rank == 0)
    with bar, ThreadPoolExecutor(NUM_LOADERS) as pool:
        for files in batches(own, clips):
            loaded = [clip for clip in pool.map(lambda file: load_clip(file, rates), files) if clip is not None]
            keyed = {clip_key(clip): clip for clip in loaded}
            new = {key: clip for key, clip in keyed.items() if not cache.has(perception.encoders, key)}
            if new:
                with torch.no_grad():
                    perception.encode(*padded(list(new.values()), device), list(new))
            num_encoded += len(new)
            num_seen += len(files)
            bar.note = f"{num_seen:,} of {len(own):,} clips"
            (bar.update if new else bar.skip)(sum(clips[file] for file in files))
    return num_encoded


def load_clip(file: AudioFile, sampling_rate: Rates) -> np.ndarray | None:
    try:
        with row_guard():
            return load_audio(file, sampling_rate)
    except RowError as error:
        logger.warning("not encoded: %s", error)
        return None


def padded(clips: Sequence[np.ndarray], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips as (A, S) or (A, S, K) samples, zero at the end, and (A,) their numbers of samples."""
    audio = pad_sequence([torch.from_numpy(clip) for clip in clips], batch_first=True)
    return audio.to(device), torch.tensor([len(clip) for clip in clips], device=device)


def batches(files: Sequence[AudioFile], clips: Clips) -> Iterator[list[AudioFile]]:
    """Files, shortest first, in batches of at most `BATCH_SECS` seconds with padding (one clip may be longer)."""
    batch: list[AudioFile] = []
    for file in files:
        if len(batch) >= MAX_CLIPS or batch and (len(batch) + 1) * clips[file] > BATCH_SECS:
            yield batch
            batch = []
        batch.append(file)
    if batch:
        yield batch
