"""What transformers' feature extractors compute, for encoders of transformers.

The extractors of wav2vec 2.0, Whisper and w2v-BERT run in torch on the audio's device; any other runs as it is, on the
CPU. Letters: N clips of one length, S samples, P positions of an encoder's input, F mel bands.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoFeatureExtractor

from nemo_desta.errors import ConfigError
from nemo_desta.perception.encoders.fbank import KaldiFbank
from nemo_desta.perception.encoders.log_mel import LogMel

#: Files that name a feature extractor; without one, transformers guesses, and wrongly for w2v-BERT.
EXTRACTOR_FILES = ("preprocessor_config.json", "processor_config.json")
VARIANCE_FLOOR = 1e-7


class HFFeatures:
    """Waveforms to an encoder's input, every clip normalised by its own samples.

    ``window_samples``: the only length that the extractor emits, as Whisper's 30 s; None: a clip's own. ``raw``: the
    input is a waveform; ``keeps_samples``: of the clip's own length.
    """

    def __init__(self, path: str, pad_samples: int = 0):
        folder = Path(path).expanduser()
        if folder.is_dir() and not any((folder / name).is_file() for name in EXTRACTOR_FILES):
            raise ConfigError(f"'{path}' has none of {', '.join(EXTRACTOR_FILES)}, so its features are not known")
        self.extractor = AutoFeatureExtractor.from_pretrained(path, trust_remote_code=False)
        self.pad_samples = pad_samples
        kind = type(self.extractor).__name__
        whisper = kind == "WhisperFeatureExtractor"
        self.sampling_rate: int = self.extractor.sampling_rate
        self.window_samples: int | None = self.extractor.n_samples if whisper else None
        self.raw = self.extractor.model_input_names[0] == "input_values"
        self.keeps_samples = kind == "Wav2Vec2FeatureExtractor" and not pad_samples
        self._compute = self._by_extractor
        if kind == "Wav2Vec2FeatureExtractor":
            self._compute = self._waveform
        elif whisper and not getattr(self.extractor, "dither", 0):
            sizes = (self.extractor.feature_size, self.sampling_rate, self.extractor.n_fft, self.extractor.hop_length)
            self._log_mel, self._compute = LogMel(*sizes), self._whisper
        elif kind == "SeamlessM4TFeatureExtractor" and self.sampling_rate == 16_000:
            self._fbank, self._compute = KaldiFbank(self.extractor.num_mel_bins), self._pairs

    def __call__(self, audio: torch.Tensor) -> torch.Tensor:
        """audio: (N, S) float32 at ``sampling_rate``, clips of one length -> (N, ...) in the encoder's layout.

        Positions that the extractor masks are cut off, except in a fixed window.
        """
        if self.pad_samples:
            audio = F.pad(audio, (self.pad_samples, self.pad_samples))
        return self._compute(audio)

    def valid_positions(self, num_samples: int) -> int:
        """Positions of a fixed window that hold ``num_samples`` samples, at least one."""
        return max(1, -(-num_samples // self.extractor.hop_length))

    def two_lengths(self) -> tuple[int, int]:
        """Samples of two clips whose features differ in time alone; equal if the window is fixed."""
        one = self.window_samples or self.sampling_rate
        return one, one if self.window_samples else 2 * one

    def _waveform(self, audio: torch.Tensor) -> torch.Tensor:
        if self.extractor.do_normalize:
            var, mean = torch.var_mean(audio, dim=1, correction=0, keepdim=True)
            audio = (audio - mean) / (var + VARIANCE_FLOOR).sqrt()
        return audio  # (N, P = S)

    def _whisper(self, audio: torch.Tensor) -> torch.Tensor:
        return self._log_mel(F.pad(audio, (0, self.window_samples - audio.shape[1])))  # (N, F, P)

    def _pairs(self, audio: torch.Tensor) -> torch.Tensor:
        mel = self._fbank(audio)  # (N, 10 ms frames, F)
        if mel.shape[1] < 2:
            raise ValueError(f"{audio.shape[1]} samples are too short for a position")
        var, mean = torch.var_mean(mel, dim=1, keepdim=True)
        mel = (mel - mean) / (var + VARIANCE_FLOOR).sqrt()
        stride = self.extractor.stride
        positions = mel.shape[1] // stride  # a last frame without its pair has a position that transformers masks
        return mel[:, : positions * stride].unflatten(1, (positions, stride)).flatten(2)  # (N, P, stride * F)

    def _by_extractor(self, audio: torch.Tensor) -> torch.Tensor:
        clips = [clip.numpy() for clip in audio.cpu()]
        found: dict[str, Any] = self.extractor(clips, sampling_rate=self.sampling_rate, return_tensors="pt")
        name = next(name for name in found if name.startswith("input_") and "mask" not in name)
        values = torch.as_tensor(found[name]).to(audio.device, torch.float32)
        if self.raw or self.window_samples:
            return values
        masks = [torch.as_tensor(found[key]) for key in found if "mask" in key]
        return values[:, : int(masks[0][0].sum())] if masks else values  # (N, P, F)
