"""Encoders by name, by dotted path or from other installed packages: how a config becomes an encoder.

Another package adds one by the entry point group ``nemo_desta.encoders`` (name = object), which is imported when asked
for.
"""

import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from nemo_desta.config import nearest
from nemo_desta.errors import ConfigError
from nemo_desta.perception.encoders.base import AudioEncoder

ENTRY_POINT_GROUP = "nemo_desta.encoders"
Factory = TypeVar("Factory", bound=Callable[..., Any])

_factories: dict[str, Callable[..., AudioEncoder]] = {}


def register_encoder(name: str) -> Callable[[Factory], Factory]:
    """Decorator: make a class or function that returns an `AudioEncoder` known as ``name``.

    Raises:
        ValueError: another one has that name already.
    """

    def register(factory: Factory) -> Factory:
        known = _factories.get(name)
        if known is not None and known.__qualname__ != factory.__qualname__:
            raise ValueError(f"encoder '{name}' is registered already, by {known.__module__}.{known.__qualname__}")
        _factories[name] = factory
        return factory

    return register


def build_encoder(name_or_config: str | Mapping[str, Any], **knobs: Any) -> AudioEncoder:
    """Build an encoder.

    name_or_config: a registered name, a dotted path, or a mapping with ``name`` or ``_target_`` (a dotted path, e.g.
    ``my_package.MyEncoder.from_pretrained``; goes before ``name``) and the factory's arguments. ``knobs`` are added to
    those; the mapping's own win.

    Raises:
        ConfigError: nothing has that name, or the factory does not know an argument (the nearest known is named).
    """
    if isinstance(name_or_config, str):
        name = name_or_config
    else:
        knobs = knobs | dict(name_or_config)
        label = knobs.pop("name", None)
        name = knobs.pop("_target_", label)
        if name is None:
            raise ConfigError(f"an encoder's config needs 'name' or '_target_', found the keys {sorted(knobs)}")
    factory = _find_factory(name)
    _check_arguments(name, factory, knobs)
    return factory(**knobs)


def encoder_names() -> list[str]:
    """Names that `build_encoder` knows, other packages' included."""
    return sorted({*_factories, *(point.name for point in _entry_points())})


def _find_factory(name: str) -> Callable[..., AudioEncoder]:
    if name in _factories:
        return _factories[name]
    for point in _entry_points():
        if point.name == name:
            return point.load()
    if "." in name:
        return _locate(name)
    raise ConfigError(f"unknown encoder '{name}'.{nearest(name, encoder_names())}")


def _entry_points() -> list[importlib.metadata.EntryPoint]:
    return list(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP))


def _locate(path: str) -> Callable[..., AudioEncoder]:
    """Import the longest prefix that is a module and follow the rest as attributes."""
    parts = path.split(".")
    for split in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:split])
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not module_name.startswith(error.name):
                raise
            continue
        for attribute in parts[split:]:
            if not hasattr(found, attribute):
                raise ConfigError(f"encoder '{path}': '{attribute}' is not in {module_name}.")
            found = getattr(found, attribute)
        return found
    raise ConfigError(f"encoder '{path}': no module '{parts[0]}' is installed. Known names: {encoder_names()}")


def _check_arguments(name: str, factory: Callable[..., AudioEncoder], knobs: Mapping[str, Any]) -> None:
    parameters = inspect.signature(factory).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for knob in knobs:
        if knob not in parameters:
            raise ConfigError(f"encoder '{name}' has no argument '{knob}'.{nearest(knob, parameters)}")
    missing = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind is not p.VAR_POSITIONAL and p.name not in knobs
    ]
    if missing:
        raise ConfigError(f"encoder '{name}' needs {', '.join(repr(n) for n in missing)}")
