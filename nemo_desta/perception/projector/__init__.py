"""Projectors: fuse and compress encoder frames to vectors of the LLM's width; built by name."""

import inspect
from typing import TYPE_CHECKING, Any

from nemo_desta.config import check_keys, nearest
from nemo_desta.errors import ConfigError
from nemo_desta.perception.projector.base import Projector
from nemo_desta.perception.projector.conv import ConvProjector
from nemo_desta.perception.projector.qformer import QFormerProjector
from nemo_desta.perception.projector.window import WindowProjector
from nemo_desta.perception.projector.window_qformer import WindowQFormerProjector

if TYPE_CHECKING:
    from nemo_desta.perception.encoders import AudioEncoder

PROJECTORS: dict[str, type[Projector]] = {
    "window": WindowProjector,
    "qformer": QFormerProjector,
    "conv": ConvProjector,
    "window_qformer": WindowQFormerProjector,
}

__all__ = [
    "PROJECTORS",
    "ConvProjector",
    "Projector",
    "QFormerProjector",
    "WindowProjector",
    "WindowQFormerProjector",
    "build_projector",
]


def build_projector(name: str, encoders: "dict[str, AudioEncoder]", output_size: int, **knobs: Any) -> Projector:
    """A projector by name with its own knobs.

    Raises:
        ConfigError: no projector has that name, or it has no such knob; the nearest known one is named.
    """
    if name not in PROJECTORS:
        raise ConfigError(f"unknown projector '{name}'.{nearest(name, PROJECTORS)}")
    known = set(inspect.signature(PROJECTORS[name]).parameters) - {"encoders", "output_size"}
    check_keys(knobs, known, "model.perception.projector")
    return PROJECTORS[name](encoders, output_size, **knobs)
