"""The two errors of all packages: an invalid config, and a row that cannot be used."""

from collections.abc import Iterator
from contextlib import contextmanager


class ConfigError(ValueError):
    """An invalid config; the message names the key, the value found and the known values."""


class RowError(ValueError):
    """A row that cannot be used. ``reason``: a fixed label for counting; the message says what to repair."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@contextmanager
def row_guard(where: str = "") -> Iterator[None]:
    """Turn any exception about one row into a `RowError`, so that no row can end a run.

    A `RowError` passes unchanged; any other exception (a MemoryError too) becomes one of reason ``unexpected``, whose
    message has the exception's type and ``where`` the row is.
    """
    try:
        yield
    except RowError:
        raise
    except Exception as error:
        detail = f"{type(error).__name__}: {str(error) or 'no message'}"
        raise RowError("unexpected", f"{where}: {detail:.500}" if where else f"{detail:.500}") from error
