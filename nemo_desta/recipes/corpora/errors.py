"""The error type of this package, and a guard that converts other errors to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nemo_desta.errors import ConfigError


class CorpusError(ValueError):
    """A card, a metadata row or a path that cannot be used; for a row the message starts with ``file:row``."""


@contextmanager
def named(where: str) -> Iterator[None]:
    """Turn any error with one row or card into a `CorpusError` that names ``where``.

    A `CorpusError` and an ImportError pass unchanged.
    """
    try:
        yield
    except (CorpusError, ImportError):
        raise
    except ConfigError as error:
        raise CorpusError(f"{where}: {error}") from None
    except Exception as error:
        raise CorpusError(f"{where}: {type(error).__name__}: {str(error):.300}") from error


def named_records(records: Any, where: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The records one by one; an error while reading names the record that came before it."""
    iterator = iter(records)
    while True:
        with named(f"after {where}"):
            record = next(iterator, None)
        if record is None:
            return
        where = record[0]
        yield record
