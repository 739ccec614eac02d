"""Kaldi's log-mel filter bank in torch: 25 ms windows every 10 ms, no dither. BEATs and EAT read 128 bands.

The arithmetic is Kaldi's `compute-fbank-feats` with its defaults and complete windows only (snip-edges).
Letters: B clips, S samples, T frames, F bands.
"""

import torch

SAMPLING_RATE = 16_000
WINDOW = 400  # samples, 25 ms
HOP = 160  # samples, 10 ms
NUM_BANDS = 128
N_FFT = 512
LOW_HZ = 20.0
PRE_EMPHASIS = 0.97
INT16_SCALE = 32_768.0
POVEY_POWER = 0.85


def num_fbank_frames(num_samples: int) -> int:
    """Complete windows in ``num_samples`` samples; may be 0."""
    return max(0, 1 + (num_samples - WINDOW) // HOP)


class KaldiFbank:
    """Log energies of mel bands; its tables stay in float32, whatever the dtype of the model.

    ``hann_power``: the window is a Hann window to this power, 0.85 for Kaldi's Povey window. ``scale``: factor of the
    samples; Kaldi works on 16-bit values.
    """

    def __init__(
        self, num_bands: int = NUM_BANDS, *, hann_power: float = POVEY_POWER, scale: float = INT16_SCALE
    ) -> None:
        self.num_bands, self._window, self._scale = num_bands, hann_window(hann_power), scale
        self._tables: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, audio: torch.Tensor) -> torch.Tensor:
        """audio: (B, S) in [-1, 1] -> (B, T, F) float32, natural logarithm, not normalised; T may be 0."""
        if audio.shape[-1] < WINDOW:
            return audio.new_zeros(audio.shape[0], 0, self.num_bands, dtype=torch.float32)
        window, bands = self._tables_on(audio.device)
        frames = (audio.float() * self._scale).unfold(-1, WINDOW, HOP)  # (B, T, 400)
        frames = frames - frames.mean(-1, keepdim=True)
        previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
        frames = (frames - PRE_EMPHASIS * previous) * window
        power = torch.fft.rfft(frames, n=N_FFT).abs().square()[..., : N_FFT // 2]
        energies = power @ bands.T
        return energies.clamp(min=torch.finfo(torch.float32).eps).log()

    def _tables_on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        if device not in self._tables:
            self._tables[device] = (self._window.to(device), mel_bands(self.num_bands).to(device))
        return self._tables[device]


def hann_window(power: float) -> torch.Tensor:
    """(400,) float32: a Hann window to a power."""
    return torch.hann_window(WINDOW, periodic=False, dtype=torch.float64, device="cpu").pow(power).float()


def mel_bands(num_bands: int = NUM_BANDS) -> torch.Tensor:
    """(F, 256) float32: triangles with equal sides on the mel scale from 20 Hz to 8 kHz, the Nyquist bin left out."""
    low, high = _mel(torch.tensor([LOW_HZ, SAMPLING_RATE / 2], dtype=torch.float64, device="cpu"))
    edges = torch.linspace(0, 1, num_bands + 2, dtype=torch.float64, device="cpu") * (high - low) + low
    bins = torch.arange(N_FFT // 2, dtype=torch.float64, device="cpu") * (SAMPLING_RATE / N_FFT)
    mel = _mel(bins)[None]  # (1, 256)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]  # (F, 1)
    rise, fall = (mel - left) / (centre - left), (right - mel) / (right - centre)
    return torch.minimum(rise, fall).clamp(min=0).float()


def _mel(hertz: torch.Tensor) -> torch.Tensor:
    return 1127.0 * (1.0 + hertz / 700.0).log()
