"""A control without any neural network: logistic regression on statistics of the log-mel spectrogram.

Its accuracy on the same clips shows how much of a task simple spectral statistics solve. It is reported beside the
model's accuracy.

S samples, T frames, F = 80 mel bands.
"""

from collections.abc import Sequence
from math import log

import torch

NUM_MELS = 80
NUM_FEATURES = 6 * NUM_MELS

_RMS = 0.1  # -20 dB full scale
_RANGE = 6 * log(10)  # 60 dB below a clip's peak; the noise floor below differs by corpus
_SILENCE = 1e-10


def probe_features(audio: torch.Tensor, sampling_rate: int = 16_000, *, normalize: bool = False) -> torch.Tensor:
    """(S,) samples in [-1, 1] -> (480,) float32.

    Per mel band: mean and standard deviation over time, standard deviation of the change from frame to frame, and
    the means of the clip's three thirds. ``normalize`` scales the clip to a fixed RMS level first: level is a cue for
    emotion and a disturbance for words.
    """
    audio = audio.float()
    hop, window = sampling_rate // 100, sampling_rate // 40
    audio = torch.nn.functional.pad(audio, (0, max(0, window + 3 * hop - audio.shape[0])))  # each third needs a frame
    if normalize:
        audio = audio * (_RMS / audio.square().mean().sqrt().clamp(min=1e-6))
    size = 1 << (window - 1).bit_length()
    spectrum = torch.stft(
        audio, size, hop, window, torch.hann_window(window), center=False, return_complex=True
    )  # (size/2 + 1, T)
    power = spectrum.abs().square() / window
    mel = (_mel_bank(size, sampling_rate) @ power).clamp(min=_SILENCE).log()  # (F, T)
    mel = mel.maximum(mel.max() - _RANGE)
    thirds = [third.mean(1) for third in mel.tensor_split(3, dim=1)]
    return torch.cat([mel.mean(1), mel.std(1), mel.diff(dim=1).std(1), *thirds])


def linear_probe(
    train_features: torch.Tensor, train_labels: Sequence[str], test_features: torch.Tensor, *, strength: float = 1.0
) -> list[str]:
    """Predicted labels of the test clips; features (clips, 480) are standardised on the training clips.

    ``strength``: inverse regularisation, scikit-learn's ``C``.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ImportError("the linear probe needs scikit-learn: pip install 'nemo_desta[eval]'") from error
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000))
    probe.fit(train_features.numpy(), list(train_labels))
    return [str(label) for label in probe.predict(test_features.numpy())]


def _mel_bank(size: int, sampling_rate: int) -> torch.Tensor:
    """(F, size/2 + 1) triangles evenly spaced on the mel scale 2595 log10(1 + f / 700), 20 Hz to half the rate."""
    low, high = (2595 * torch.log10(1 + torch.tensor(hz / 700)) for hz in (20.0, sampling_rate / 2))
    mels = torch.linspace(float(low), float(high), NUM_MELS + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)
    bins = torch.linspace(0, sampling_rate / 2, size // 2 + 1)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0)
