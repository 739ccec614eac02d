"""Parts by name: how a config becomes an encoder, projector, engine, gate, benchmark, reader or prompt format.

A name is one of ours, one that `Registry.register` added, or an entry point of an installed package. In the user's own
config it may also be a dotted name (``my_module.MyClass``), which is searched in the current folder, too. Files of
others never import one: `nemo_desta.core.trust` checks model folders, and kinds that cards or rows name have
``dotted=False``.
"""

import importlib
import importlib.metadata
import inspect
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from nemo_desta.config import check_type, nearest
from nemo_desta.errors import ConfigError

Part = TypeVar("Part", bound=Callable[..., Any])


class Registry(Mapping[str, Any]):
    """The known parts of one kind. Nothing is imported before its name is requested.

    Args:
        kind: "encoder", "engine", ..., for messages.
        group: entry point group of other packages, ``nemo_desta.<kind>s``.
        built_in: name -> part, or ``module`` or ``module:attribute`` as text.
        dotted: whether dotted names are imported.
    """

    def __init__(
        self, kind: str, group: str, built_in: Mapping[str, Any] | None = None, *, dotted: bool = True
    ) -> None:
        self.kind, self.group, self.built_in, self.dotted = kind, group, dict(built_in or {}), dotted
        self.factories: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[Part], Part]:
        """Decorator that registers a class or function as ``name``.

        Raises:
            ValueError: another part has that name.
        """

        def add(part: Part) -> Part:
            known = self.factories.get(name) or (self[name] if name in self.built_in else None)
            if known is not None and getattr(known, "__qualname__", None) != part.__qualname__:
                found = f"{getattr(known, '__module__', known)}.{getattr(known, '__qualname__', name)}"
                raise ValueError(f"{self.kind} '{name}' is registered already, by {found}")
            self.factories[name] = part
            return part

        return add

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self.built_in, *self.factories, *(point.name for point in self._entry_points())}))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        """Whether the name is known. Imports nothing; installed packages are searched last."""
        ours = [*self.built_in, *self.factories]
        return name in ours or any(point.name == name for point in self._entry_points())

    def __getitem__(self, name: str) -> Any:
        """The part of a name, imported now if it was not yet.

        Raises:
            ConfigError: no part has that name; the message gives the nearest one.
        """
        self.check(name)
        if name in self.factories:
            return self.factories[name]
        if name in self.built_in:
            found = self.built_in[name]
            return _resolve(found) if isinstance(found, str) else found
        for point in self._entry_points():
            if point.name == name:
                return point.load()
        return self._import(name)

    def check(self, name: Any) -> None:
        """Raise `ConfigError` unless ``name`` is known, or dotted where that is allowed. Imports nothing."""
        if name not in self and not (self.dotted and isinstance(name, str) and "." in name):
            raise ConfigError(f"unknown {self.kind} {name!r}.{nearest(str(name), self)}")

    def read(self, config: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The name in a config, and the part's arguments: all its keys but ``name`` and ``_target_``, which wins.

        Raises:
            ConfigError: neither key is there, or no mapping.
        """
        if isinstance(config, str):
            return config, {}
        if not isinstance(config, Mapping):
            raise ConfigError(f"{self.kind}: expected a name or a mapping, found {config!r}")
        settings = dict(config)
        label = settings.pop("name", None)
        name = settings.pop("_target_", label)
        if name is None:
            found = sorted(map(str, settings))
            raise ConfigError(f"{self.kind}: its config needs 'name' or '_target_', found the keys {found}")
        if not isinstance(name, str):
            raise ConfigError(f"{self.kind}: a name must be text, found {name!r}")
        return name, settings

    def settings(self, name: str, settings: Mapping[str, Any], num_parts: int = 0, **offered: Any) -> dict[str, Any]:
        """The arguments to call the part with: ``settings``, and those of ``offered`` that its signature names.

        ``num_parts``: number of leading arguments that the caller gives by position.

        Raises:
            ConfigError: an unknown argument (the message gives the nearest one), a missing one, or a wrong type.
        """
        given = dict(settings)
        parameters = list(inspect.signature(self[name]).parameters.values())
        names = [parameter.name for parameter in parameters]
        settings = {**{key: value for key, value in offered.items() if key in names}, **settings}
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return settings
        own = [parameter for parameter in parameters[num_parts:] if parameter.kind is not parameter.VAR_POSITIONAL]
        known = [parameter.name for parameter in own]
        for key in settings:
            if key not in known:
                raise ConfigError(f"{self.kind} '{name}' has no argument '{key}'.{nearest(str(key), known)}")
        needed = [parameter.name for parameter in own if parameter.default is parameter.empty]
        if missing := [repr(one) for one in needed if one not in settings]:
            raise ConfigError(f"{self.kind} '{name}' needs {', '.join(missing)}")
        part = self[name]
        try:
            hints = get_type_hints(part.__init__ if isinstance(part, type) else part)
        except (NameError, TypeError):  # a hint that is only imported for type checkers, or none at all
            return settings
        for key, value in given.items():
            check_type(value, hints.get(key, Any), f"{self.kind} '{name}': '{key}'")
        return settings

    def build(self, config: str | Mapping[str, Any], *parts: Any, **offered: Any) -> Any:
        """Call the part of ``config`` (see `read`) with ``parts`` and its `settings`."""
        name, settings = self.read(config)
        settings = self.settings(name, settings, len(parts), **offered)
        return self[name](*parts, **settings)

    def _entry_points(self) -> list[importlib.metadata.EntryPoint]:
        return list(importlib.metadata.entry_points(group=self.group))

    def _import(self, path: str) -> Any:
        """Import the longest prefix that is a module and follow the rest as attributes."""
        _search_current_folder(path.partition(".")[0])
        parts = path.split(".")
        for split in range(len(parts), 0, -1):
            module_name = ".".join(parts[:split])
            try:
                found: Any = importlib.import_module(module_name)
            except ModuleNotFoundError as error:
                if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                    raise
                continue
            for attribute in parts[split:]:
                if not hasattr(found, attribute):
                    raise ConfigError(f"{self.kind} '{path}': '{attribute}' is not in {module_name}.")
                found = getattr(found, attribute)
            return found
        raise ConfigError(
            f"{self.kind} '{path}': no module '{parts[0]}' is installed, and there is no {parts[0]}.py in "
            f"{Path.cwd()}. Known names: {', '.join(self) or 'none'}"
        )


def _resolve(name: str) -> Any:
    """``module`` or ``module:attribute`` -> the module, or its attribute. Any name that Python imports will do:
    `pkgutil.resolve_name` refuses those that transformers gives to the code of a folder."""
    module, _, attribute = name.partition(":")
    found = importlib.import_module(module)
    return operator.attrgetter(attribute)(found) if attribute else found


def _search_current_folder(module: str) -> None:
    """Let Python find ``module`` in the current folder if no installed one has its name.

    The folder goes to the end of the path, so no file in it can stand in for an installed module.
    """
    folder = Path.cwd()
    if (folder / f"{module}.py").is_file() or (folder / module).is_dir():
        if str(folder) not in sys.path and module not in sys.modules:
            sys.path.append(str(folder))
            importlib.invalidate_caches()
