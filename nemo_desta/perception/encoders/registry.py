"""Encoders by name, by dotted path or from the entry point group ``nemo_desta.encoders`` of other packages."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from nemo_desta.errors import ConfigError
from nemo_desta.perception.encoders.base import AudioEncoder, EncoderShape
from nemo_desta.perception.registry import Factory, Registry

ENCODERS = Registry("encoder", "nemo_desta.encoders")


def register_encoder(name: str, *, shape: Callable[..., EncoderShape] | None = None) -> Callable[[Factory], Factory]:
    """Decorator that registers a class or function, which returns an `AudioEncoder`, as ``name``.

    ``shape`` returns the `EncoderShape` for (some of) the same arguments and loads no weights.

    Raises:
        ValueError: another encoder has that name.
    """

    def add(factory: Factory) -> Factory:
        if shape is not None:
            factory.shape = shape
        return ENCODERS.register(name)(factory)

    return add


def build_encoder(name_or_config: str | Mapping[str, Any], **knobs: Any) -> AudioEncoder:
    """Build an encoder.

    ``name_or_config``: a registered name, a dotted path, or a mapping with ``name`` or ``_target_`` (a dotted path,
    e.g. ``my_package.MyEncoder.from_pretrained``; it overrides ``name``) and the factory's arguments. ``knobs`` are
    defaults for the arguments of the mapping.

    Raises:
        ConfigError: no encoder has that name, or the factory has no such argument; the message gives the nearest one.
    """
    name, knobs = _read(name_or_config, knobs)
    ENCODERS.check_arguments(name, knobs)
    return ENCODERS[name](**knobs)


def encoder_shape(name_or_config: str | Mapping[str, Any], **knobs: Any) -> EncoderShape:
    """The shape of the encoder that `build_encoder` would build; no weights are loaded.

    Raises:
        ConfigError: as `build_encoder`, or an encoder that cannot tell its shape without its weights.
    """
    name, knobs = _read(name_or_config, knobs)
    ENCODERS.check_arguments(name, knobs)
    factory = ENCODERS[name]
    shape = getattr(factory, "shape", None) or getattr(getattr(factory, "__self__", None), "shape", None)
    if shape is None:
        raise ConfigError(
            f"encoder '{name}' does not tell its shape without its weights: pass shape= to register_encoder, or give "
            "its class a classmethod 'shape' with the same arguments"
        )
    return shape(**{key: value for key, value in knobs.items() if key in inspect.signature(shape).parameters})


def encoder_names() -> list[str]:
    """Names that `build_encoder` knows, those of other packages included."""
    return list(ENCODERS)


def _read(name_or_config: str | Mapping[str, Any], knobs: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of the factory, and all its arguments."""
    if isinstance(name_or_config, str):
        return name_or_config, knobs
    knobs = knobs | dict(name_or_config)
    label = knobs.pop("name", None)
    name = knobs.pop("_target_", label)
    if name is None:
        raise ConfigError(f"an encoder's config needs 'name' or '_target_', found the keys {sorted(knobs)}")
    return name, knobs
