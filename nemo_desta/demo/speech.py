"""Synthetic speech from espeak-ng, which the pip package ``espeakng-loader`` contains with all voices.

A voice is a language and a variant ("en-us+f3"). Variants differ in pitch, formants and breath; each is one speaker.
"""

import ctypes
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import soxr

from nemo_desta.demo.world import load_texts

SAMPLING_RATE = 16000
RATE_RANGE = (80, 400)

#: Male and female variants, in the order of the corpus.
MALE_VARIANTS, FEMALE_VARIANTS = (tuple(names.split()) for names in load_texts("world.yaml")["voices"].values())

_SYNCHRONOUS, _UTF8 = 2, 1
_RATE, _PITCH, _RANGE = 1, 3, 4


class Utterance(NamedTuple):
    """The arguments of one `synth`."""

    text: str
    voice: str = "en"
    rate: int = 170
    pitch: int = 50
    pitch_range: int = 50


def synth_all(utterances: Sequence[Utterance], *, chunk: int = 500) -> Iterator[np.ndarray]:
    """`synth` of each, in order, in a new process: the same list always gives the same samples.

    espeak-ng keeps the state of its flutter and noise between clips; a new process resets it.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for start in range(0, len(utterances), chunk):
            yield from pool.submit(_synth_chunk, list(utterances[start : start + chunk])).result()


def synth(text: str, voice: str = "en", rate: int = 170, pitch: int = 50, pitch_range: int = 50) -> np.ndarray:
    """Synthesise ``text``: float32 (S,) at 16 kHz, peak 0.9, without leading and trailing silence.

    ``voice``: espeak-ng's name, such as "en", "de+m2", "fr+f2"; ``rate``: words per minute, 80 to 400; ``pitch`` and
    ``pitch_range``: 0 to 99 around the voice's own. For reproducible samples see `synth_all`.

    Raises ``ValueError`` for an unknown voice or a rate out of range, ``ImportError`` with the install line.
    """
    if not RATE_RANGE[0] <= rate <= RATE_RANGE[1]:
        raise ValueError(f"rate {rate} is out of range; espeak-ng speaks {RATE_RANGE[0]} to {RATE_RANGE[1]} words/min")
    library, native_rate, chunks = _espeak()
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise ValueError(f"espeak-ng has no voice {voice!r}; a voice is a language and a variant, such as 'en+f3'")
    for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range)):
        library.espeak_SetParameter(parameter, value, 0)
    data = text.encode()
    chunks.clear()
    library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    samples = np.concatenate(chunks).astype(np.float32) / 32768
    audio = soxr.resample(samples, native_rate, SAMPLING_RATE).astype(np.float32)
    loud = np.flatnonzero(np.abs(audio) > 0.01 * np.abs(audio).max())
    audio = audio[loud[0] : loud[-1] + 1]
    return audio * np.float32(0.9 / np.abs(audio).max())


def _synth_chunk(utterances: list[Utterance]) -> list[np.ndarray]:
    return [synth(*utterance) for utterance in utterances]


@lru_cache(maxsize=1)
def _espeak() -> tuple[Any, int, list[np.ndarray]]:
    """The library (one per process), its sampling rate, and the list that its callback fills."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise ImportError("the demo's speech needs espeak-ng: pip install espeakng-loader") from error
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, str(espeakng_loader.get_data_path()).encode(), 0)
    chunks: list[np.ndarray] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def receive(samples: Any, count: int, events: Any) -> int:
        if count:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    library.espeak_SetSynthCallback(receive)
    library.espeak_ng_SetRandSeed(ctypes.c_long(0))  # by default the clock seeds it
    library.receive = receive  # the library keeps a bare pointer, so the callback must live as long as the library
    return library, rate, chunks
