"""``records/log.txt``: what the screen said, over all resumes, with the traceback of an error that ended the run."""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOG_FILE = "log.txt"
#: exp_manager opens these, mostly for nothing.
OFTEN_EMPTY = ("nemo_error_log.txt", "nemo_log_*.txt", "lightning_logs.txt", LOG_FILE)


@contextmanager
def run_log(log_dir: Path, *, write: bool) -> Iterator[None]:
    """Copy log records to the run's file while the run lasts; ``write``: this process does.

    At the end, empty log files of exp_manager and folders without a file are removed.
    """
    if not write:
        yield
        return
    file = log_dir / "records" / LOG_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.root.addHandler(handler)
    try:
        yield
    except Exception:
        record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, traceback.format_exc(), None, None)
        handler.emit(record)
        raise
    finally:
        logging.root.removeHandler(handler)
        handler.close()
        _remove_empty(log_dir)


def _remove_empty(log_dir: Path) -> None:
    for name in OFTEN_EMPTY:
        for folder in (log_dir, log_dir / "records", *log_dir.glob("run_*")):
            for file in folder.glob(name):
                if file.is_file() and file.stat().st_size == 0:
                    file.unlink()
    for folder in log_dir.glob("run_*"):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
