"""Projectors by name, by dotted path or from the entry point group ``nemo_desta.projectors`` of other packages."""

from collections.abc import Callable, Mapping
from typing import Any

from nemo_desta.perception.encoders.base import AudioEncoder, EncoderShape
from nemo_desta.perception.projector.base import Projector
from nemo_desta.perception.registry import PROJECTORS
from nemo_desta.registry import Part


def register_projector(name: str) -> Callable[[Part], Part]:
    """Decorator that registers a class or function, which returns a `Projector`, as ``name``.

    It is called as ``factory(encoders, output_size, **knobs)``, with ``output_rms=`` if it has this argument; see
    `Projector`.

    Raises:
        ValueError: another projector has that name.
    """
    return PROJECTORS.register(name)


def build_projector(
    name: str,
    encoders: Mapping[str, AudioEncoder | EncoderShape],
    output_size: int,
    *,
    output_rms: float | None = None,
    **knobs: Any,
) -> Projector:
    """Build a projector for ``encoders`` (or their shapes) and an LLM of width ``output_size``.

    ``name``: a registered name or a dotted path. ``output_rms``: RMS of the LLM's embedding table, for a projector
    that has this argument. ``knobs``: further arguments of the projector.

    Raises:
        ConfigError: no projector has that name, or it has no such argument; the message gives the nearest one.
    """
    return PROJECTORS.build({**knobs, "_target_": name}, encoders, output_size, output_rms=output_rms)


def projector_names() -> list[str]:
    """Names that `build_projector` knows, those of other packages included."""
    return list(PROJECTORS)
