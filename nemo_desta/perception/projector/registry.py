"""Projectors by name, by dotted path or from the entry point group ``nemo_desta.projectors`` of other packages."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from nemo_desta.config import check_keys
from nemo_desta.perception.encoders.base import AudioEncoder, EncoderShape
from nemo_desta.perception.projector.base import Projector
from nemo_desta.perception.registry import Factory, Registry

PROJECTORS = Registry("projector", "nemo_desta.projectors")
KEY = "model.perception.projector"


def register_projector(name: str) -> Callable[[Factory], Factory]:
    """Decorator that registers a class or function, which returns a `Projector`, as ``name``.

    It is called as ``factory(encoders, output_size, **knobs)``; see `Projector`.

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
    """Build a projector.

    Args:
        name: a registered name or a dotted path.
        encoders: the encoders, or their shapes, by name.
        output_size: width of the LLM.
        output_rms: RMS of the LLM's embedding table, for projectors that have this argument.
        knobs: further arguments of the projector.

    Raises:
        ConfigError: no projector has that name, or it has no such argument; the message gives the nearest one.
    """
    factory = PROJECTORS[name]
    parameters = inspect.signature(factory).parameters
    is_open = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if not is_open:
        check_keys(knobs, set(parameters) - {"encoders", "output_size"}, KEY)
    if is_open or "output_rms" in parameters:
        knobs["output_rms"] = output_rms
    return factory(dict(encoders), output_size, **knobs)


def projector_names() -> list[str]:
    """Names that `build_projector` knows, those of other packages included."""
    return list(PROJECTORS)
