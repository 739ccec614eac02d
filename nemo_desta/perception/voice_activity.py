"""Voice activity detection by Silero's detector from the package silero-vad.

Letters: S samples at 16 kHz.
"""

import threading
from typing import Any

import numpy as np
import torch

SAMPLING_RATE = 16_000
#: Samples per probability of the detector.
HOP = 512


class VoiceActivity:
    """Finds speech. Threads may share one; a lock serialises them, since the detector is recurrent.

    ``threshold``: the least probability of speech. ``pad_secs``: added around every stretch of speech.
    """

    def __init__(self, *, threshold: float = 0.5, pad_secs: float = 0.2) -> None:
        """Raises ``ImportError`` with the install line where silero-vad is missing."""
        num_threads = torch.get_num_threads()
        try:
            import silero_vad
        except ImportError as error:
            raise ImportError(
                "finding speech needs silero-vad: pip install silero-vad, or pip install 'nemo_desta[transcript]'"
            ) from error
        finally:
            torch.set_num_threads(num_threads)  # its import sets one thread for the whole process
        self.threshold = threshold
        self.pad_secs = pad_secs
        self._silero: Any = silero_vad
        self._model = silero_vad.load_silero_vad()
        self._lock = threading.Lock()

    def __call__(self, audio: np.ndarray, *, max_secs: float = float("inf")) -> list[tuple[int, int]]:
        """(S,) float32 -> (first, end) samples of every stretch of speech, in order; they do not overlap.

        A stretch longer than ``max_secs`` is cut at its longest pause, or anywhere if it has none.
        """
        found = self._silero.get_speech_timestamps_from_probs(
            self._probabilities(audio),
            sampling_rate=SAMPLING_RATE,
            threshold=self.threshold,
            max_speech_duration_s=max_secs,
            speech_pad_ms=round(1000 * self.pad_secs),
            audio_length_samples=len(audio),
        )
        return [(int(stretch["start"]), int(stretch["end"])) for stretch in found]

    def _probabilities(self, audio: np.ndarray) -> list[float]:
        """One probability per `HOP` samples begun."""
        signal = torch.from_numpy(np.ascontiguousarray(audio, dtype=np.float32))
        signal = torch.nn.functional.pad(signal, (0, -len(audio) % HOP))
        with self._lock, torch.no_grad():
            self._model.reset_states()
            return [self._model(piece, SAMPLING_RATE).item() for piece in signal.view(-1, HOP)]
