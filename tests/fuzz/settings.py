"""Configs with one setting changed: every key in turn gets values of other kinds, is misspelt, and is dropped."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from nemo_desta.user_errors import one_line

#: In place of any value. No large numbers: a projector of that size would be built.
VALUES = ("soon", "", -1, 0, 1.5, True, None, [], ["x"], [3], {}, {"x": 1})


class Change(NamedTuple):
    """``how``: value, drop or misspell; ``path``: keys and numbers; ``new``: the value, or the misspelt key."""

    how: str
    path: tuple[Any, ...]
    new: Any = None

    def __str__(self) -> str:
        return f"{self.how} {'.'.join(map(str, self.path))} {self.new!r}"

    def of(self, base: dict[str, Any]) -> dict[str, Any]:
        """A changed copy of ``base``."""
        config = holder = copy.deepcopy(base)
        for key in self.path[:-1]:
            holder = holder[key]
        if self.how == "value":
            holder[self.path[-1]] = self.new
            return config
        old = holder.pop(self.path[-1])
        if self.how == "misspell":
            holder[self.new] = old
        return config


def changes(base: dict[str, Any], *, but: Iterable[str] = ()) -> Iterator[Change]:
    """Every change of ``base``; ``but``: top-level keys that stay."""
    for path in _paths(base):
        if path[0] in but:
            continue
        for value in VALUES:
            yield Change("value", path, value)
        yield Change("drop", path)
        if isinstance(path[-1], str):
            yield Change("misspell", path, path[-1] + path[-1][-1])


def tracebacks(job: Callable[[dict[str, Any]], Any], base: dict[str, Any], some: Iterable[Change]) -> list[str]:
    """The changes with which ``job`` ends in something else than a result or one line for the user."""
    bad = []
    for change in some:
        try:
            job(change.of(base))
        except Exception as error:
            line = one_line(error)
            if line is None or "\n" in line or not line.strip():
                bad.append(f"{change}: {type(error).__name__}: {error}")
    return bad


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from _paths(item, (*path, key))
