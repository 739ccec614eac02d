"""A terminal for its user: NeMo and its friends talk while they are imported, and log where answers are printed."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silence_imports() -> Iterator[None]:
    """For imports: no warnings and no log below an error."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def log_to_stderr() -> None:
    """From now on: warnings of this package and errors of all others, plain, on standard error; no progress bars of
    loaders."""
    from transformers.utils import logging as transformers_logging

    warnings.simplefilter("ignore")
    logging.disable(logging.NOTSET)  # whatever `silence_imports` is around this
    transformers_logging.disable_progress_bar()
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("nemo_desta").setLevel(logging.WARNING)
