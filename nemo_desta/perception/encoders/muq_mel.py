"""MuQ's log-mel spectrogram in torch, on the device of the audio: 24 kHz, 100 frames per second, decibels.

Letters: N clips, S samples, T mel frames, F mel bands.
"""

import torch
import torch.nn.functional as F
from transformers.audio_utils import mel_filter_bank

SAMPLING_RATE = 24_000
N_FFT = 2048
HOP = 240
NUM_BANDS = 128
REACH = N_FFT // 2  # samples before and after a clip that the windows of its first and last frame cover


class MuqMel:
    """Decibels of 128 mel bands, normalised by one mean and deviation; its tables stay in float32."""

    def __init__(self, mean: float, std: float):
        self.mean, self.std = mean, std
        self._filters = mel_filter_bank(
            num_frequency_bins=1 + N_FFT // 2,
            num_mel_filters=NUM_BANDS,
            min_frequency=0.0,
            max_frequency=SAMPLING_RATE / 2,
            sampling_rate=SAMPLING_RATE,
            norm=None,
            mel_scale="htk",
        )
        self._tables: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, audio: torch.Tensor, ends: list[int] | None = None) -> torch.Tensor:
        """audio: (N, S) float32 in [-1, 1] -> (N, T, F) float32, T = S // 240.

        The samples before a clip's first and from its end on are the clip mirrored at that sample, as in MuQ's
        training. ``ends``: where each clip ends, at least 1025 and at most S; S for all if None.

        Raises:
            ValueError: an end below 1025 samples, which cannot be mirrored.
        """
        ends = [audio.shape[1]] * len(audio) if ends is None else ends
        if min(ends) <= REACH:
            raise ValueError(f"MuQ's mel spectrogram needs {REACH + 1} samples of a clip, found {min(ends)}")
        window, filters = self._tables_on(audio.device)
        mirrored = F.pad(audio, (REACH, REACH))
        for row, end in enumerate(ends):
            mirrored[row, :REACH] = audio[row, 1 : REACH + 1].flip(0)
            mirrored[row, REACH + end : 2 * REACH + end] = audio[row, end - REACH - 1 : end - 1].flip(0)
        spectrum = torch.stft(mirrored, N_FFT, HOP, window=window, center=False, return_complex=True)
        power = spectrum[..., :-1].abs().square()  # (N, bins, T)
        decibels = 10 * (filters @ power).clamp(min=1e-10).log10()
        return ((decibels - self.mean) / self.std).transpose(1, 2)

    def _tables_on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        if device not in self._tables:
            window = torch.hann_window(N_FFT, dtype=torch.float32, device=device)
            filters = torch.from_numpy(self._filters.T).to(device, torch.float32).contiguous()
            self._tables[device] = (window, filters)
        return self._tables[device]
