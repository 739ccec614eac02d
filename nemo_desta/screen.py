"""What reaches the terminal: this package's own lines. Other libraries print while they are imported and used."""

import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.Lock()
_silent = 0  # how many imports are silenced now, in all threads


@contextmanager
def silence_imports() -> Iterator[None]:
    """Suppresses warnings and log records below an error, for imports."""
    _count(+1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            _count(-1)


def _count(change: int) -> None:
    global _silent
    with _LOCK:
        _silent += change
        logging.disable(logging.WARNING if _silent else logging.NOTSET)


def log_to_stderr(level: int = logging.WARNING) -> None:
    """Logs this package's records from ``level`` on and errors of all others to standard error; below WARNING with
    their time. Python's warnings are not shown."""
    warnings.simplefilter("ignore")
    logging.disable(logging.NOTSET)  # even inside `silence_imports`
    form = "%(message)s" if level >= logging.WARNING else "%(asctime)s %(message)s"
    logging.basicConfig(level=logging.ERROR, format=form, datefmt="%H:%M:%S", stream=sys.stderr, force=True)
    logging.getLogger("nemo_desta").setLevel(level)


def hush(*loggers: str) -> None:
    """Shows only errors of these loggers, which set a level of their own when they are imported."""
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
