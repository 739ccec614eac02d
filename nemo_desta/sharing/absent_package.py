"""A stand-in for a package that is not installed, in code that an export carries: what uses it fails by name."""

from typing import Any


class AbsentPackage:
    """Imports work, also of classes that derive from the package's; calling anything of it raises ImportError."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> type:
        name = self._name

        def refuse(self: Any, *_: Any, **__: Any) -> None:
            raise ImportError(f"{name} is not installed: pip install {name}")

        return type(attribute, (Exception,), {"__init__": refuse})
