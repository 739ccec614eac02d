"""JSON Lines files that grow line by line and stay readable when the process is killed in the middle of a line.

`JsonlLog` has one writer and cuts off a half-written line. `read_shared` and `append_shared` are for a cache that
several processes extend: a half-written line stays in the file and is skipped.
"""

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

#: Maximum time between a write and the next write's fsync.
SYNC_SECS = 2.0


class JsonlLog:
    """The file at ``path``, open for appending by one process.

    Raises:
        BlockingIOError: with ``lock``, when another process has the file open.
    """

    def __init__(self, path: Path, *, lock: bool = False) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        if lock and not try_lock(self._file):
            self._file.close()
            raise BlockingIOError(f"another process writes {path}")
        self._last_sync = time.monotonic()

    def lines(self) -> Iterator[bytes]:
        """The lines in the file. A half-written line at the end is removed once all others have been read."""
        whole = 0
        with self.path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    whole += len(line)
                    yield line
                else:
                    logger.warning("%s: cut off %d bytes of a half-written line", self.path, len(line))
                    self._file.truncate(whole)

    def append(self, lines: bytes) -> None:
        """Write whole lines. They survive a kill of this process, and a power cut after at most about SYNC_SECS."""
        self._file.write(lines)
        if time.monotonic() - self._last_sync > SYNC_SECS:
            os.fsync(self._file.fileno())
            self._last_sync = time.monotonic()

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


def json_line(record: Mapping[str, Any]) -> bytes:
    """One JSON line. Half a surrogate pair, which UTF-8 cannot encode, becomes a question mark."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def read_shared(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a shared cache; other lines are skipped. Empty when there is no file."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict):
                yield record


def append_shared(path: Path, record: Mapping[str, Any]) -> None:
    """Add one record, in one write, so that lines of several processes do not mix."""
    with path.open("a+b", buffering=0) as file:
        half = file.seek(0, os.SEEK_END) > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
        file.write((b"\n" if half else b"") + json_line(record))


def try_lock(file: Any, *, wait: bool = False) -> bool:
    """Take an exclusive lock on an open file. False when another process has it and ``wait`` is off."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
