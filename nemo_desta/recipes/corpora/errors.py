"""The error type of this package, a guard that converts other errors to it, and warnings about files."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from nemo_desta.errors import ConfigError

#: Limit of different notices per corpus, so that a file of random keys cannot fill the memory.
MOST = 1000

logger = logging.getLogger(__name__)


class CorpusError(ValueError):
    """A card, a metadata row or a path that cannot be used; for a row the message starts with ``file:row``."""


@contextmanager
def named(where: str) -> Iterator[None]:
    """Turn any error with one row or card, except an ImportError, into a `CorpusError` that names ``where``."""
    try:
        yield
    except (CorpusError, ImportError):
        raise
    except ConfigError as error:
        raise CorpusError(f"{where}: {error}") from None
    except Exception as error:
        raise CorpusError(f"{where}: {type(error).__name__}: {str(error):.300}") from error


class Notices:
    """Logs each warning about a file once, with its first ``file:row``. ``counts``: (file, what) -> rows."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._said: set[tuple[str, str]] = set()
        self._summed = False

    def add(self, where: str, what: str) -> None:
        key = (where.rpartition(":")[0], what)
        if key not in self.counts and len(self.counts) >= MOST:
            return
        self.counts[key] += 1
        if key not in self._said and len(self._said) < MOST:
            self._said.add(key)
            logger.warning("%s: %s", where, what)

    def end(self) -> None:
        """The whole corpus was read: log each count, after the first reading only."""
        if not self._summed:
            for (file, what), count in self.counts.items():
                logger.warning("%s: %s: %d rows", file, what, count)
        self._summed = True
