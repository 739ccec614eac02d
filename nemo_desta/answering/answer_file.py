"""The output of a batch: a JSON line per answer, appended at once and whole after any kill. Its ids serve to resume.

answers.jsonl            {"id", "answer", "thinking", "finish", counts, "settings"}
answers.rejected.jsonl   rows without an answer, with the reason; rewritten by every run
"""

import fcntl
import json
import logging
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from nemo_desta.errors import ConfigError

logger = logging.getLogger(__name__)

#: Seconds until an answer is on the disk, at most.
SYNC_SECS = 2.0


class AnswerFile:
    """A file of answers, locked for this process. ``done``: ids that have an answer.

    ``settings``: those that decide about the answers. ``kept``: settings whose value comes from answers in the file.

    Raises:
        ConfigError: the file holds answers of other settings (named) or other lines, or another process writes it.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], *, kept: Collection[str] = ()) -> None:
        self.path = Path(path)
        self.rejected = self.path.with_suffix(f".rejected{self.path.suffix}")
        self.settings = json.loads(json.dumps(settings))
        self.done: set[str] = set()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ConfigError(f"another process writes {self.path}; give this one another output") from None
        self._read(kept)
        self._rejects = self.rejected.open("wb", buffering=0)
        self._synced = time.monotonic()

    def answer(self, row_id: str, answer: Mapping[str, Any]) -> None:
        """Append one answer."""
        self._file.write(_line({"id": row_id, **answer, "settings": self.settings}))
        self.done.add(row_id)
        if time.monotonic() - self._synced > SYNC_SECS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def reject(self, row_id: str | None, where: str, reason: str, detail: str) -> None:
        """Name a row without an answer."""
        self._rejects.write(_line({"id": row_id, "where": where, "reason": reason, "detail": detail}))

    def close(self) -> None:
        """Close the files; an empty file of rejected rows is deleted."""
        os.fsync(self._file.fileno())
        self._file.close()
        is_empty = self._rejects.tell() == 0
        self._rejects.close()
        if is_empty:
            self.rejected.unlink()

    def _read(self, kept: Collection[str]) -> None:
        """Read the answers in the file, and cut off a line that a kill left half-written."""
        self._file.seek(0)
        whole = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    logger.warning("%s: cut off %d bytes of a half-written answer", self.path, len(line))
                    self._file.truncate(whole)
                    break
                whole += len(line)
                try:
                    record = json.loads(line)
                    row_id, settings = record["id"], dict(record["settings"])
                except (ValueError, TypeError, KeyError):
                    raise ConfigError(f"{self.path}:{number} is no answer; give another output") from None
                if number == 1:
                    decided = {key: settings[key] for key in kept if key in settings}
                    self.settings = {key: value for key, value in self.settings.items() if key not in kept} | decided
                if settings != self.settings:
                    raise ConfigError(
                        f"{self.path} holds answers of other settings: {_difference(settings, self.settings)}. Give "
                        "the same settings to resume, or another output"
                    )
                self.done.add(row_id)


def _line(record: Mapping[str, Any]) -> bytes:
    """One JSON line; half a surrogate pair, which UTF-8 cannot hold, becomes a question mark."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _difference(there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    keys = [key for key in {**there, **now} if there.get(key) != now.get(key)]
    return "; ".join(f"{key} (there: {there.get(key)!r}, now: {now.get(key)!r})" for key in keys)
