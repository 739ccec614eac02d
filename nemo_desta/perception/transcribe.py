"""Transcripts of recordings of any length, by a whole Whisper after a voice activity detector.

The transcript channel needs Whisper's decoder, which the encoders of a model never load. Letters: S samples at
16 kHz, N windows.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, WhisperForConditionalGeneration

from nemo_desta.ops.dtypes import as_dtype
from nemo_desta.perception.encoders.log_mel import LogMel
from nemo_desta.perception.encoders.whisper import HOP, SAMPLING_RATE
from nemo_desta.perception.voice_activity import VoiceActivity

logger = logging.getLogger(__name__)

#: (S,), ``max_secs=`` -> stretches of speech, as `VoiceActivity`.
FindSpeech = Callable[..., list[tuple[int, int]]]


class Window(NamedTuple):
    """Samples ``start`` to ``end`` of clip ``clip``, one input of Whisper."""

    clip: int
    start: int
    end: int


def always_speech(audio: np.ndarray, *, max_secs: float) -> list[tuple[int, int]]:
    """A detector that calls all of (S,) speech, cut every ``max_secs``."""
    size = int(max_secs * SAMPLING_RATE)
    return [(start, min(start + size, len(audio))) for start in range(0, len(audio), size)]


class WhisperTranscriber:
    """Transcribes clips, (S,) float32 arrays: one text each, "" without speech.

    A clip that fits into Whisper's window is transcribed whole; a longer one in windows of its speech, cut at pauses.

    Args:
        find_speech: a `VoiceActivity`, or `always_speech` to use no detector.
        language: code such as "en"; None: Whisper detects it, per window. English-only models accept "en" only.
        max_new_tokens: per window. batch_size: windows decoded together.
    """

    def __init__(
        self,
        model: WhisperForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        *,
        find_speech: FindSpeech,
        language: str | None = None,
        max_new_tokens: int = 224,
        batch_size: int = 16,
    ) -> None:
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.find_speech = find_speech
        self.batch_size = batch_size
        self.window_samples = model.config.max_source_positions * HOP
        self.max_new_tokens = max_new_tokens
        self._log_mel = LogMel(model.config.num_mel_bins)
        self._lock = threading.Lock()
        self._task: dict[str, str] = {}
        if getattr(model.generation_config, "is_multilingual", False):
            self._task = {"task": "transcribe"} | ({"language": language} if language else {})
        elif language not in (None, "en"):
            raise ValueError(f"this Whisper knows English only; language is '{language}'")

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        find_speech: FindSpeech | None = None,
        language: str | None = None,
        max_new_tokens: int = 224,
        batch_size: int = 16,
    ) -> "WhisperTranscriber":
        """Load from a folder or hub id. ``device`` None: a GPU where there is one; ``dtype`` None: float32;
        ``find_speech`` None: Silero's detector.

        Raises:
            ValueError: weights are missing, such as those of an encoder alone. OSError: no model, or no tokenizer.
            ImportError: silero-vad is needed and not installed.
        """
        model, report = WhisperForConditionalGeneration.from_pretrained(
            path_or_id, dtype=as_dtype(dtype), output_loading_info=True
        )
        if missing := sorted(report["missing_keys"]):
            raise ValueError(
                f"'{path_or_id}' lacks {len(missing)} tensors of a whole Whisper, such as {missing[0]}; transcripts "
                "need the decoder too"
            )
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(
            model.to(device),
            AutoTokenizer.from_pretrained(path_or_id, trust_remote_code=False),
            find_speech=find_speech or VoiceActivity(),
            language=language,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
        )

    def __call__(self, clips: Sequence[np.ndarray]) -> list[str]:
        """One text per clip. Threads may share a transcriber; a lock serialises them."""
        windows = [window for i, audio in enumerate(clips) for window in self.windows(audio, i)]
        said = [""] * len(clips)
        by_length = sorted(windows, key=lambda window: window.end - window.start)
        texts: dict[Window, str] = {}
        for start in range(0, len(windows), self.batch_size):
            batch = by_length[start : start + self.batch_size]
            texts.update(zip(batch, self._transcribe(clips, batch), strict=True))
        for window in windows:  # Whisper writes the space between words itself
            said[window.clip] += texts[window]
        return [text.strip() for text in said]

    def windows(self, audio: np.ndarray, clip: int = 0) -> Iterator[Window]:
        """Windows of (S,): consecutive speech is grouped as far as it fits; no window without speech."""
        size = self.window_samples
        stretches = self.find_speech(audio, max_secs=size / SAMPLING_RATE)
        if len(audio) <= size:
            yield from [Window(clip, 0, len(audio))] * bool(stretches)
            return
        first, last = None, 0
        for start, end in stretches:
            if first is not None and end - first > size:
                yield Window(clip, first, last)
                first = None
            first, last = (start if first is None else first), end
            while last - first > size:  # a detector may pad a stretch beyond max_secs
                yield Window(clip, first, first + size)
                first += size
        if first is not None:
            yield Window(clip, first, last)

    def _transcribe(self, clips: Sequence[np.ndarray], windows: Sequence[Window]) -> list[str]:
        """Raw texts of windows that are decoded as one batch."""
        audio = torch.zeros(len(windows), self.window_samples)
        for row, (clip, start, end) in enumerate(windows):
            audio[row, : end - start] = torch.from_numpy(clips[clip][start:end])
        with self._lock, torch.no_grad(), _quietly():
            features = self._log_mel(audio.to(self.model.device)).to(self.model.dtype)
            everything = torch.ones(features.shape[0], features.shape[-1], dtype=torch.int64, device=features.device)
            written = self.model.generate(
                features,
                attention_mask=everything,
                max_new_tokens=self._room(),
                do_sample=False,
                num_beams=1,
                **self._task,
            )
        special = set(self.tokenizer.all_special_ids)
        rows = [[token for token in row if token not in special] for row in written.tolist()]
        for (clip, start, end), row in zip(windows, rows, strict=True):
            if len(row) >= self._room():
                logger.warning(
                    "clip %d, %.1f to %.1f s: the transcript reached its limit of %d tokens and ends there",
                    clip,
                    start / SAMPLING_RATE,
                    end / SAMPLING_RATE,
                    self._room(),
                )
        return [
            self.tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False) for row in rows
        ]

    def _room(self) -> int:
        """New tokens of one window: ``max_new_tokens``, limited by the decoder's positions."""
        return min(self.max_new_tokens, self.model.config.max_target_positions - 4)  # start, language, task, no times


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence `generate`'s warnings about Whisper's own config, such as its max_length, which repeat at every call."""
    generation = logging.getLogger("transformers.generation")
    level = generation.level
    generation.setLevel(logging.ERROR)
    try:
        yield
    finally:
        generation.setLevel(level)
