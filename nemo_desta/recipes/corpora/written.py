"""Audio that a card makes of the corpus' files: its folder below the data root, and writing it once."""

import os
import re
from hashlib import blake2b
from pathlib import Path

import numpy as np
import soundfile

from nemo_desta.recipes.corpora.audio import relative_audio
from nemo_desta.recipes.corpora.errors import CorpusError

_HEADER = 44  # bytes of a WAV file before its 16-bit samples
_PLAIN = re.compile(r"\w[\w.-]{0,49}(?:-\w[\w.-]{0,49})?", re.ASCII)  # names that are file names as they are


class WrittenAudio:
    """The folder ``<extract_to>/<card>`` of one key (``cut`` or ``join``) of a card; a file that is there is kept.

    Raises ``CorpusError``: a folder outside the data root, also by a link.
    """

    def __init__(self, root: Path, extract_to: str, card: str, key: str):
        self._root, self._key = root, key
        where = f"card {card}: {key}"
        self._folder = relative_audio(f"{extract_to}/{card}", root, where=where, what="extract_to")
        real, real_root = os.path.realpath(root / self._folder), os.path.realpath(root)
        if os.path.commonpath([real_root, real]) != real_root:
            raise CorpusError(f"{where}: extract_to leads to {real}; it must be a folder below the data root")

    def name(self, clip_id: str) -> str:
        """The file of a clip, relative to the data root."""
        file = clip_id if _PLAIN.fullmatch(clip_id) else blake2b(clip_id.encode(), digest_size=12).hexdigest()
        return f"{self._folder}/{file}.wav"

    def holds(self, audio: str, num_samples: int) -> bool:
        """Whether the file ``audio`` is there with so many samples."""
        path = self._root / audio
        return path.is_file() and path.stat().st_size == _HEADER + 2 * num_samples

    def write(self, audio: str, samples: np.ndarray, rate: int) -> None:
        """Write (S,) samples at ``rate`` Hz, clipped to [-1, 1], in 16 bits. Raises ``CorpusError``."""
        path = self._root / audio
        partial = path.with_name(f"{path.stem}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(partial, np.clip(samples, -1.0, 1.0), rate, subtype="PCM_16", format="WAV")
            os.replace(partial, path)
        except (OSError, soundfile.SoundFileError) as error:
            raise CorpusError(
                f"cannot write {path}: {error}; set {self._key}.extract_to to a folder below the data root that can "
                "be written"
            ) from None
