"""Encoders by name, by dotted path or from the entry point group ``nemo_desta.encoders`` of other packages."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from nemo_desta.errors import ConfigError
from nemo_desta.perception.encoders.base import AudioEncoder, EncoderShape
from nemo_desta.perception.registry import ENCODERS
from nemo_desta.registry import Part


def register_encoder(name: str, *, shape: Callable[..., EncoderShape] | None = None) -> Callable[[Part], Part]:
    """Decorator that registers a class or function, which returns an `AudioEncoder`, as ``name``.

    ``shape`` returns the `EncoderShape` for (some of) the same arguments and loads no weights.

    Raises:
        ValueError: another encoder has that name.
    """

    def add(factory: Part) -> Part:
        if shape is not None:
            factory.shape = shape
        return ENCODERS.register(name)(factory)

    return add


def build_encoder(
    name_or_config: str | Mapping[str, Any], *, dtype: torch.dtype | str | None = None, **knobs: Any
) -> AudioEncoder:
    """Build an encoder.

    ``name_or_config``: a registered name, a dotted path, or a mapping with ``name`` or ``_target_`` (a dotted path,
    e.g. ``my_package.MyEncoder.from_pretrained``; it overrides ``name``) and the factory's arguments. ``knobs`` are
    defaults for the arguments of the mapping. ``dtype``: the same, for a factory that has this argument; any other
    encoder keeps the dtype of its own weights.

    Raises:
        ConfigError: no encoder has that name, or the factory has no such argument; the message gives the nearest one.
    """
    name, settings = ENCODERS.read(name_or_config)
    offered = {} if dtype is None else {"dtype": dtype}
    return ENCODERS.build({**knobs, **settings, "_target_": name}, **offered)


def encoder_shape(name_or_config: str | Mapping[str, Any], **knobs: Any) -> EncoderShape:
    """The shape of the encoder that `build_encoder` would build; no weights are loaded.

    Raises:
        ConfigError: as `build_encoder`, or an encoder that cannot tell its shape without its weights.
    """
    name, settings = ENCODERS.read(name_or_config)
    settings = ENCODERS.settings(name, {**knobs, **settings})
    factory = ENCODERS[name]
    shape = _attribute(factory, "shape")
    if shape is None:
        raise ConfigError(
            f"encoder '{name}' does not tell its shape without its weights: pass shape= to register_encoder, or give "
            "its class a classmethod 'shape' with the same arguments"
        )
    return shape(**{key: value for key, value in settings.items() if key in inspect.signature(shape).parameters})


def feature_files(name_or_config: str | Mapping[str, Any]) -> tuple[str, ...]:
    """Files beside config and weights that decide an encoder's features: its factory's ``feature_files``."""
    return _attribute(ENCODERS[ENCODERS.read(name_or_config)[0]], "feature_files") or ()


def encoder_names() -> list[str]:
    """Names that `build_encoder` knows, those of other packages included."""
    return list(ENCODERS)


def _attribute(factory: Any, name: str) -> Any:
    """Of a factory, or of the class whose method it is."""
    return getattr(factory, name, None) or getattr(getattr(factory, "__self__", None), name, None)
