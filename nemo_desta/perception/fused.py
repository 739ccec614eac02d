"""Frozen encoders and the trainable projector as one module: waveforms in, vectors for the LLM out.

It also has the names of NeMo's perception modules. Letters: B clips, S samples, K rates, W vectors
of the longest clip, D LLM width.
"""

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace

import torch
from torch import nn

from nemo_desta.perception.encoders.base import AudioEncoder
from nemo_desta.perception.feature_cache import FeatureCache, check_cacheable, clip_keys
from nemo_desta.perception.masks import zero_beyond
from nemo_desta.perception.resample import rates_below, resample, resampled_length
from nemo_desta.types import EncoderOutput, Rates

QUIET = 1e-8  # mean square below which a clip counts as silence and is not scaled


class FusedPerception(nn.Module):
    """Runs every encoder on the same clips, each at its own sampling rate, and projects their outputs together."""

    def __init__(
        self,
        encoders: dict[str, AudioEncoder],
        projector: nn.Module,
        sampling_rate: int = 16_000,
        *,
        normalize_dbfs: float | None = None,
    ):
        """Take ready parts.

        Args:
            encoders: by name, as in the projector; each is an nn.Module.
            projector: called as ``projector(features by name, audio_lens=, sampling_rate=)``.
            sampling_rate: of the audio that is passed to `forward`.
            normalize_dbfs: RMS level in dB full scale to which each clip is scaled before encoding; None: not scaled.

        Raises:
            ValueError: no encoder, or a name that cannot be part of a parameter name.
        """
        super().__init__()
        if not encoders:
            raise ValueError("FusedPerception needs at least one encoder, found none")
        for name in encoders:
            if not name.isidentifier() or hasattr(nn.ModuleDict, name):
                raise ValueError(
                    f"encoder name '{name}' cannot be part of parameter names; use letters, digits and underscores, "
                    "and none of the methods of a dictionary"
                )
        self.encoders = nn.ModuleDict(encoders)
        self.projector = projector
        self.sampling_rate = sampling_rate
        self.normalize_dbfs = normalize_dbfs
        self._feature_cache: FeatureCache | None = None
        self.preprocessor = SimpleNamespace(featurizer=SimpleNamespace(sample_rate=sampling_rate))  # read by NeMo

    def forward(
        self,
        audio: torch.Tensor | None = None,
        audio_lens: torch.Tensor | None = None,
        *,
        input_signal: torch.Tensor | None = None,
        input_signal_length: torch.Tensor | None = None,
        audio_keys: Sequence[str] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode and project a batch of clips.

        Args:
            audio: (B, S) in [-1, 1] at ``sampling_rate``, or (B, S, K) at ``audio_rates``; values beyond each clip's
                samples are not read. B may be 0. An encoder whose rate is not given hears audio resampled once more.
            audio_lens: (B,) int64 samples of each clip.
            input_signal, input_signal_length: NeMo's names for the same two.
            audio_keys: (B,) `clip_key` of each clip, for the feature cache; computed here if None.

        Returns:
            vectors (B, W, D) and lens (B,) int64.
        """
        audio = input_signal if audio is None else audio
        audio_lens = input_signal_length if audio_lens is None else audio_lens
        if audio is None or audio_lens is None:
            raise TypeError("FusedPerception needs audio and audio_lens (or input_signal and input_signal_length)")
        if audio_lens.numel() == 0:
            return audio.new_zeros(0, 0, self.projector.output_size), audio_lens
        with torch.no_grad():
            features = self.encode(audio.float(), audio_lens, audio_keys)
        return self.projector(features, audio_lens=audio_lens, sampling_rate=self.sampling_rate)

    def encode(
        self, audio: torch.Tensor, audio_lens: torch.Tensor, audio_keys: Sequence[str] | None = None
    ) -> dict[str, EncoderOutput]:
        """The encoders' outputs for clips as of `forward`, read from the feature cache as far as they are there."""
        if (cache := self._feature_cache) is None:
            return {name: self._encode(encoder, audio, audio_lens) for name, encoder in self.encoders.items()}
        keys = audio_keys or clip_keys(audio, audio_lens)

        def some(encoder: AudioEncoder, clips: list[int]) -> EncoderOutput:
            lens = audio_lens[clips]
            return self._encode(encoder, audio[clips, : int(lens.max())], lens)

        return {name: cache.features(name, e, keys, partial(some, e)) for name, e in self.encoders.items()}

    @property
    def feature_cache(self) -> FeatureCache | None:
        """The cache of the encoders' outputs; None: every clip is encoded in every step.

        Raises:
            ConfigError: it is set, and these parts cannot be cached (see `check_cacheable`).
        """
        return self._feature_cache

    @feature_cache.setter
    def feature_cache(self, cache: FeatureCache | None) -> None:
        if cache is not None:
            check_cacheable(self.encoders, self.projector)
            cache.audio_rates = self.audio_rates
        self._feature_cache = cache

    @property
    def audio_rates(self) -> Rates:
        """The rates at which files are to be read: ``sampling_rate``, and every lower one of an encoder."""
        return rates_below(self.sampling_rate, [encoder.sampling_rate for encoder in self.encoders.values()])

    def num_tokens(self, num_samples: int) -> int:
        """Vectors that one clip of ``num_samples`` samples at ``sampling_rate`` becomes."""
        return self.projector.num_tokens(num_samples, self.sampling_rate)

    @property
    def token_equivalent_duration(self) -> float:
        """Seconds of audio per vector, averaged over a minute; NeMo estimates batch lengths with it."""
        return 60 / self.num_tokens(60 * self.sampling_rate)

    def _encode(self, encoder: AudioEncoder, audio: torch.Tensor, audio_lens: torch.Tensor) -> EncoderOutput:
        given, rate = self.sampling_rate, encoder.sampling_rate
        lens = resampled_length(audio_lens, given, rate)
        if audio.dim() == 3:
            column = self.audio_rates.index(rate) if rate <= given else 0
            audio = audio[..., column].contiguous()
            if column:
                audio, audio_lens, given = audio[:, : int(lens.max())], lens, rate
        audio = resample(zero_beyond(audio, audio_lens), given, rate)
        return encoder(audio if self.normalize_dbfs is None else _to_level(audio, lens, self.normalize_dbfs), lens)


def _to_level(audio: torch.Tensor, audio_lens: torch.Tensor, dbfs: float) -> torch.Tensor:
    """audio: (B, S) zero beyond the clips -> every clip at ``dbfs`` RMS; silent clips are not changed."""
    power = audio.double().square().sum(1) / audio_lens.clamp(min=1)
    gain = torch.where(power > QUIET, 10 ** (dbfs / 20) / power.clamp(min=QUIET).sqrt(), 1.0)
    return audio * gain.float()[:, None]
