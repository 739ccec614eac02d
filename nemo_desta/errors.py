"""The two errors that every room raises: a config that cannot be right, and a row that cannot be used."""

from collections.abc import Iterator
from contextlib import contextmanager


class ConfigError(ValueError):
    """A config that cannot be right; the message names the key, what was found and what is known."""


class RowError(ValueError):
    """A row that cannot be used. ``reason``: a short fixed word to count by; the message says what to repair."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@contextmanager
def row_guard(where: str = "") -> Iterator[None]:
    """Turn whatever goes wrong with one row into a `RowError`, so that no row can end a run.

    A `RowError` passes unchanged; any other exception (a MemoryError too) becomes one of reason ``unexpected``, which
    names its type, and ``where`` the row stands.
    """
    try:
        yield
    except RowError:
        raise
    except Exception as error:
        detail = f"{type(error).__name__}: {str(error) or 'no message'}"
        raise RowError("unexpected", f"{where}: {detail:.500}" if where else f"{detail:.500}") from error
