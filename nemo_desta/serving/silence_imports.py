"""Keeps the terminal clean: NeMo and other libraries print while they are imported, and log to standard output."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silence_imports() -> Iterator[None]:
    """Suppresses warnings and log records below an error, for imports."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def log_to_stderr() -> None:
    """Logs warnings of this package and errors of all others to standard error, as plain text; disables the progress
    bars of transformers."""
    from transformers.utils import logging as transformers_logging

    warnings.simplefilter("ignore")
    logging.disable(logging.NOTSET)  # even inside `silence_imports`
    transformers_logging.disable_progress_bar()
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("nemo_desta").setLevel(logging.WARNING)
