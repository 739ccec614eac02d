"""Projectors: fuse and compress encoder frames to vectors of the LLM's width; built by name."""

from nemo_desta.perception.projector.base import Projector
from nemo_desta.perception.projector.conv import ConvProjector
from nemo_desta.perception.projector.qformer import QFormerProjector
from nemo_desta.perception.projector.registry import (
    PROJECTORS,
    build_projector,
    projector_names,
    register_projector,
)
from nemo_desta.perception.projector.window import WindowProjector
from nemo_desta.perception.projector.window_qformer import WindowQFormerProjector

__all__ = [
    "PROJECTORS",
    "ConvProjector",
    "Projector",
    "QFormerProjector",
    "WindowProjector",
    "WindowQFormerProjector",
    "build_projector",
    "projector_names",
    "register_projector",
]
