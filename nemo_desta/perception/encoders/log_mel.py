"""Whisper's log-mel spectrogram in torch, on the device of the audio.

Letters: N chunks, S samples per chunk, F mel bands, T mel frames.
"""

import torch
from transformers.audio_utils import mel_filter_bank


class LogMel:
    """Log-mel as `WhisperFeatureExtractor` computes it, for chunks that are already padded to Whisper's window.

    It is no nn.Module, since buffers would be converted to bfloat16 with the model.
    """

    def __init__(self, num_mel_bins: int, sampling_rate: int = 16_000, n_fft: int = 400, hop_length: int = 160):
        self.n_fft = n_fft
        self.hop_length = hop_length
        self._filters = mel_filter_bank(
            num_frequency_bins=1 + n_fft // 2,
            num_mel_filters=num_mel_bins,
            min_frequency=0.0,
            max_frequency=sampling_rate / 2,
            sampling_rate=sampling_rate,
            norm="slaney",
            mel_scale="slaney",
        )
        self._tables: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, audio: torch.Tensor) -> torch.Tensor:
        """audio: (N, S) float32 -> (N, F, S / hop_length) float32; each row has its own dynamic range of 80 dB."""
        window, filters = self._tables_on(audio.device)
        spectrum = torch.stft(audio, self.n_fft, self.hop_length, window=window, return_complex=True)
        power = spectrum[..., :-1].abs().square()
        log_mel = (filters @ power).clamp(min=1e-10).log10()  # (N, F, T)
        floor = log_mel.amax(dim=(1, 2), keepdim=True) - 8.0
        return (torch.maximum(log_mel, floor) + 4.0) / 4.0

    def _tables_on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        if device not in self._tables:
            window = torch.hann_window(self.n_fft, dtype=torch.float32, device=device)
            filters = torch.from_numpy(self._filters.T).to(device, torch.float32).contiguous()
            self._tables[device] = (window, filters)
        return self._tables[device]
