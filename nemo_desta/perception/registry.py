"""Factories by name, by dotted path or from other installed packages: how a config becomes an encoder or projector."""

import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, get_type_hints

from nemo_desta.config import check_type, nearest
from nemo_desta.errors import ConfigError

Factory = TypeVar("Factory", bound=Callable[..., Any])


class Registry(Mapping[str, Callable[..., Any]]):
    """The known factories of one kind.

    Args:
        kind: "encoder" or "projector", for messages.
        group: entry point group of other packages (name = object). An object is imported when its name is requested.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind, self.group = kind, group
        self.factories: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[Factory], Factory]:
        """Decorator that registers a class or function as ``name``.

        Raises:
            ValueError: another factory has that name.
        """

        def add(factory: Factory) -> Factory:
            known = self.factories.get(name)
            if known is not None and known.__qualname__ != factory.__qualname__:
                found = f"{known.__module__}.{known.__qualname__}"
                raise ValueError(f"{self.kind} '{name}' is registered already, by {found}")
            self.factories[name] = factory
            return factory

        return add

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self.factories, *(point.name for point in self._entry_points())}))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in list(iter(self))  # Mapping's own would import the entry point

    def __getitem__(self, name: str) -> Callable[..., Any]:
        """The factory of a registered name, an entry point or a dotted path, which is imported.

        Raises:
            ConfigError: no factory has that name; the message gives the nearest one.
        """
        if name in self.factories:
            return self.factories[name]
        for point in self._entry_points():
            if point.name == name:
                return point.load()
        if "." in name:
            return self._locate(name)
        raise ConfigError(f"unknown {self.kind} '{name}'.{nearest(name, self)}")

    def check_arguments(self, name: str, given: Mapping[str, Any]) -> None:
        """Compare ``given`` with the signature of a factory.

        Raises:
            ConfigError: an unknown argument (the message gives the nearest one), a missing one, or a wrong type.
        """
        factory = self[name]
        parameters = inspect.signature(factory).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return
        for argument in given:
            if argument not in parameters:
                raise ConfigError(f"{self.kind} '{name}' has no argument '{argument}'.{nearest(argument, parameters)}")
        needed = [p for p in parameters.values() if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
        if missing := [repr(p.name) for p in needed if p.name not in given]:
            raise ConfigError(f"{self.kind} '{name}' needs {', '.join(missing)}")
        try:
            hints = get_type_hints(factory.__init__ if isinstance(factory, type) else factory)
        except NameError:  # a hint that is only imported for type checkers
            return
        for argument, value in given.items():
            check_type(value, hints.get(argument, Any), f"{self.kind} '{name}': '{argument}'")

    def _entry_points(self) -> list[importlib.metadata.EntryPoint]:
        return list(importlib.metadata.entry_points(group=self.group))

    def _locate(self, path: str) -> Callable[..., Any]:
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
                    raise ConfigError(f"{self.kind} '{path}': '{attribute}' is not in {module_name}.")
                found = getattr(found, attribute)
            return found
        raise ConfigError(f"{self.kind} '{path}': no module '{parts[0]}' is installed. Known names: {list(self)}")
