"""What goes into the processor and what comes out of it: clips in several forms, and the model's inputs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import BatchFeature

from nemo_desta.errors import RowError


class DestaInputs(BatchFeature):
    """The model's inputs. ``audio`` stays float32 when the others are cast: a sample has more bits than bfloat16."""

    def to(self, *args: Any, **kwargs: Any) -> "DestaInputs":
        audio = self.get("audio")
        moved = super().to(*args, **kwargs)
        if audio is not None:
            moved["audio"] = audio.to(moved["audio"].device)
        return moved


def clips_of(audio: Any, counts: list[int], tag: str) -> list[Any]:
    """One clip, a list of clips, or a list of clips per text, as one list.

    ``counts``: how often each text has the ``tag``.

    Raises:
        RowError: tags and clips differ in number.
    """
    if audio is None:
        audio = []
    elif not isinstance(audio, list | tuple) or _are_samples(audio):
        audio = [audio]
    elif all(isinstance(item, list | tuple) and not _are_samples(item) for item in audio):
        if (found := [len(item) for item in audio]) != counts:
            raise RowError("tags", f"the texts have {counts} {tag} tags but {found} clips; each tag needs one")
        audio = [clip for item in audio for clip in item]
    if len(audio) != sum(counts):
        raise RowError("tags", f"{sum(counts)} {tag} tags but {len(audio)} clips; each tag needs one")
    return list(audio)


def _are_samples(item: Sequence[Any]) -> bool:
    return len(item) > 0 and isinstance(item[0], int | float | np.number)
