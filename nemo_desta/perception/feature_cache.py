"""The outputs of frozen encoders on disk, so that a clip is encoded once and not in every epoch.

`FusedPerception` asks a `FeatureCache` when it has one. A clip's key is the hash of its samples. Everything else that
decides its features (weights and settings of the encoder, layers, level, rates, dtype) names the folder they are in,
so features of other encoders or settings are never read. Only a clip's own frames are stored.

Letters: B clips, S samples, N encoder layers, T frames, C encoder width.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nemo_desta.config import FeatureCacheConfig
from nemo_desta.errors import ConfigError
from nemo_desta.ops.dtypes import as_dtype
from nemo_desta.perception.encoders.base import AudioEncoder, FrozenEncoder
from nemo_desta.perception.feature_store import FeatureStore
from nemo_desta.sources import cache_root
from nemo_desta.types import EncoderOutput, Rates

logger = logging.getLogger(__name__)

#: A part of every folder's name. It changes with the code of an encoder, of `resample` or of the level.
VERSION = 1
GB = 10**9


class FeatureCache:
    """Features of the encoders of one perception.

    ``num_hits`` counts clips and encoders whose features were read, ``num_encoded`` those that were encoded.

    Args:
        settings: folder, limit and dtype.
        identities: what identifies each encoder's weights and settings, by the encoder's name.
        audio: what is done to the audio before the encoders: its level. The perception gives its ``audio_rates``.
    """

    def __init__(
        self, settings: FeatureCacheConfig, identities: Mapping[str, Mapping[str, Any]], audio: Mapping[str, Any]
    ) -> None:
        self.settings, self.identities, self.audio = settings, identities, dict(audio)
        self.audio_rates: Rates | None = None
        self.folder = features_folder(settings)
        self.num_hits = self.num_encoded = 0
        self._stores: dict[tuple[str, torch.dtype], FeatureStore] = {}

    def features(
        self, name: str, encoder: FrozenEncoder, keys: Sequence[str], encode: Callable[[list[int]], EncoderOutput]
    ) -> EncoderOutput:
        """The encoder's output for the clips of ``keys`` (B); frames beyond a clip's own are 0.

        ``encode``: numbers of clips of the batch -> the encoder's output for these. It is called once, with the clips
        that are not in the cache, or not at all. Their features pass through the stored dtype too, so the result does
        not depend on what the cache holds.

        Raises:
            ConfigError: the encoder is in train mode, or its values do not fit into float16.
        """
        if encoder.training or encoder.model.training:
            raise ConfigError(f"feature_cache: encoder '{name}' is in train mode, so its output may change")
        dtype = encoder.dtype
        store, stored = self._store(name, encoder), self._stored_dtype(dtype)
        found = {key: store.get(key) for key in dict.fromkeys(keys)}
        missing = [keys.index(key) for key, tensor in found.items() if tensor is None]
        self.num_hits += len(found) - len(missing)
        self.num_encoded += len(missing)
        device = None
        if missing:
            layers, lens = encode(missing)
            device = layers[0].device
            whole = torch.stack(layers, 1).to(stored).cpu()  # (B, N, T, C)
            new = {
                keys[i]: clip[:, :length].contiguous()
                for i, clip, length in zip(missing, whole, lens.tolist(), strict=True)
            }
            if stored == torch.float16 and not all(clip.isfinite().all() for clip in new.values()):
                raise ConfigError(f"feature_cache.dtype=float16: encoder '{name}' has larger values; use bfloat16")
            store.put(new)
            found |= new
        return _padded([found[key] for key in keys], dtype, device or _device_of(encoder))

    def summary(self) -> str:
        """Hits and misses in one line."""
        total = self.num_hits + self.num_encoded
        share = f" ({self.num_hits / total:.1%})" if total else ""
        return f"feature cache: {self.num_hits:,} of {total:,} encoder outputs were read{share} from {self.folder}"

    def has(self, encoders: Mapping[str, FrozenEncoder], key: str) -> bool:
        """Whether every encoder's features of a clip are here."""
        return all(self._store(name, encoder).get(key) is not None for name, encoder in encoders.items())

    def _store(self, name: str, encoder: FrozenEncoder) -> FeatureStore:
        dtype = encoder.dtype
        if (name, dtype) not in self._stores:
            about = {
                **self.identities[name],
                "layer_ids": list(encoder.layer_ids),
                "sampling_rate": encoder.sampling_rate,
                "computed_in": str(dtype),
                "stored_in": str(self._stored_dtype(dtype)),
                "audio": {"sampling_rate": self.audio_rates, **self.audio},
                "version": VERSION,
            }
            max_gb = self.settings.max_gb
            limit = None if max_gb is None else int(max_gb * GB)
            self._stores[name, dtype] = store = FeatureStore(self.folder, about, max_bytes=limit)
            logger.info("feature cache of '%s': %d clips in %s", name, len(store), store.folder)
        return self._stores[name, dtype]

    def _stored_dtype(self, computed: torch.dtype) -> torch.dtype:
        return computed if self.settings.dtype == "auto" else as_dtype(self.settings.dtype)


def features_folder(settings: FeatureCacheConfig) -> Path:
    """The folder of the settings; by default ``features`` in this package's cache folder."""
    return Path(settings.folder).expanduser() if settings.folder else cache_root() / "features"


def check_cacheable(encoders: Mapping[str, AudioEncoder], projector: nn.Module) -> None:
    """Refuse parts whose features of a clip are not one value that can be kept.

    Raises:
        ConfigError: an encoder that is trained, may have a train mode, or whose frames depend on the batch; a
            projector that reads frames beyond a clip's end.
    """
    for name, encoder in encoders.items():
        where = f"feature_cache: encoder '{name}'"
        if not isinstance(encoder, FrozenEncoder):
            raise ConfigError(
                f"{where} is no FrozenEncoder: it may have a train mode (dropout, masks) or use the LLM's autocast; "
                "derive it from nemo_desta.perception.encoders.FrozenEncoder, or switch the cache off"
            )
        if any(parameter.requires_grad for parameter in encoder.parameters()):
            raise ConfigError(f"{where} is trained, so its features change with every step; switch the cache off")
        if encoder.depends_on_batch:
            raise ConfigError(
                f"{where} has original_masks: a clip's frames depend on the other clips of the batch; switch "
                "original_masks or the cache off"
            )
    if getattr(projector, "reads_padding", False):
        raise ConfigError(
            "feature_cache: the projector has original_masks and reads frames beyond a clip's end, which are not "
            "stored; switch original_masks or the cache off"
        )


def clip_keys(audio: torch.Tensor, audio_lens: torch.Tensor) -> list[str]:
    """(B, S) or (B, S, K) float32, (B,) -> a hash of each clip's samples."""
    audio = audio.detach().cpu()
    return [clip_key(clip[:length].numpy()) for clip, length in zip(audio, audio_lens.tolist(), strict=True)]


def clip_key(samples: Any) -> str:
    """Hash of a clip's samples, (S,) or (S, K) float32."""
    return hashlib.sha256(samples.tobytes()).hexdigest()


def feature_bytes(encoder: FrozenEncoder, num_samples: int, dtype: str) -> int:
    """Bytes of the stored features of a clip of ``num_samples`` samples at the encoder's rate."""
    stored = encoder.dtype if dtype == "auto" else as_dtype(dtype)
    return encoder.num_frames(num_samples) * len(encoder.layer_ids) * encoder.hidden_size * stored.itemsize


def _device_of(encoder: FrozenEncoder) -> torch.device:
    return next(encoder.parameters()).device


def _padded(clips: Sequence[torch.Tensor], dtype: torch.dtype, device: torch.device) -> EncoderOutput:
    """B tensors (N, T, C) -> N tensors (B, T, C), zero beyond each clip's frames."""
    lens = [clip.shape[1] for clip in clips]
    num_layers, _, width = clips[0].shape
    pinned = device.type == "cuda"
    whole = torch.zeros(num_layers, len(clips), max(lens), width, dtype=clips[0].dtype, pin_memory=pinned)
    for i, clip in enumerate(clips):
        whole[:, i, : clip.shape[1]] = clip
    whole = whole.to(device, non_blocking=pinned).to(dtype)
    return EncoderOutput(tuple(whole), torch.tensor(lens, device=device))
