"""The JSONL file that a recipe appends to: what is in it survives a kill, and says where to go on."""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

logger = logging.getLogger(__name__)


class RowFile:
    """Rows with an ``id``, one JSON object per line; ``ids`` holds those in the file.

    Opening an existing file reads its ids and cuts off a last line without line end, which a kill left half-written.
    ``append`` returns when its rows are on the disk. ``readonly`` changes nothing on the disk. ``ValueError`` with
    ``file:line`` for a line that is no row.
    """

    def __init__(self, path: str | os.PathLike[str], *, readonly: bool = False) -> None:
        self.path = Path(path)
        self.ids: set[str] = set()
        whole = self._read() if self.path.exists() else 0
        self._file = None
        if not readonly:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
            if self._file.tell() > whole:
                logger.warning("%s: cut off %d bytes of a half-written row", self.path, self._file.tell() - whole)
                self._file.truncate(whole)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write ``rows`` behind the others and wait until the disk has them."""
        if self._file is None:
            raise ValueError(f"{self.path} is open for reading only")
        rows = list(rows)
        self._file.write(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.ids.update(row["id"] for row in rows)

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def _read(self) -> int:
        """Fill ``ids``; the number of bytes in whole lines."""
        size = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    self.ids.add(json.loads(line)["id"])
                except (ValueError, TypeError, KeyError):
                    raise ValueError(f"{self.path}:{number}: not a row with an id; was the file edited?") from None
                size += len(line)
        return size
