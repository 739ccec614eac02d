"""One shard in work: its lock, its journal, and the finished file in the plan's order."""

import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from nemo_desta.recipes.items import Verdict
from nemo_desta.recipes.pipeline.folder import RecipeFolder, dump_line, try_lock, write_lines
from nemo_desta.recipes.pipeline.stage import Outcome

logger = logging.getLogger(__name__)

#: The disk has a settled row at the latest after so many seconds.
SYNC_SECS = 2.0
#: Rows are handed to the system together, at most so many; the driver also does it every `FLUSH_SECS`.
LINES_TOGETHER, FLUSH_SECS = 32, 0.1


class Shard:
    """Shard ``number`` of a folder, held by this process from `claim` until `finish` or `release`.

    ``settled``: ids whose fate the journal knows.
    """

    def __init__(self, folder: RecipeFolder, number: int, lock: object) -> None:
        self.folder = folder
        self.number = number
        self.settled: set[str] = set()
        self._lock = lock
        self._part = folder.shards / f"{number:05d}.part"
        self._last_sync = time.monotonic()
        self._lines: list[bytes] = []
        self._entries: list[tuple[int, str, bytes]] = []  # all of the journal: place, id, line
        whole = self._read() if self._part.exists() else 0
        self._file = self._part.open("ab", buffering=0)
        if self._file.tell() > whole:
            logger.warning("%s: cut off %d bytes of a half-written row", self._part, self._file.tell() - whole)
            self._file.truncate(whole)

    @classmethod
    def claim(cls, folder: RecipeFolder, number: int) -> "Shard | None":
        """Take a shard; None when it is finished or another process holds it."""
        if folder.shard_file(number).exists():
            return None
        try:
            lock = open(folder.shards / f"{number:05d}.lock", "ab")
        except FileNotFoundError:
            if folder.finished:  # by another process, a moment ago
                return None
            raise
        if not try_lock(lock) or folder.shard_file(number).exists():
            lock.close()
            return None
        return cls(folder, number, lock)

    def append(self, place: int, row_id: str, outcome: Outcome) -> None:
        """Write what became of a row; ``place``: where the plan has it in this shard."""
        verdict = outcome.verdict
        record = {
            "place": place,
            "id": row_id,
            "reason": verdict.reason if verdict else None,
            "detail": verdict.detail if verdict else None,
            "row": outcome.row,
            "attempts": outcome.attempts,
            "tokens": [outcome.prompt_tokens, outcome.new_tokens],
        }
        line = dump_line(record)
        self._entries.append((place, row_id, line))
        self._lines.append(line)
        self.settled.add(row_id)
        if len(self._lines) >= LINES_TOGETHER:
            self.flush()

    def flush(self) -> None:
        """Hand what is settled to the system, which keeps it when this process is killed."""
        if not self._lines:
            return
        self._file.write(b"".join(self._lines))
        self._lines.clear()
        now = time.monotonic()
        if now - self._last_sync > SYNC_SECS:
            os.fsync(self._file.fileno())
            self._last_sync = now

    def finish(self, wanted: Sequence[str]) -> None:
        """Write the finished file, in the order of ``wanted``, and let go of the shard.

        Raises:
            RuntimeError: the journal holds other rows than ``wanted``.
        """
        lines = sorted(self._entries)
        found, expected = [row_id for _, row_id, _ in lines], list(wanted)
        if found != expected:
            raise RuntimeError(f"{self._part} holds {len(found)} rows, the plan wants {len(expected)} others")
        write_lines(self.folder.shard_file(self.number), (line for _, _, line in lines))
        self.release()
        self._part.unlink(missing_ok=True)

    def release(self) -> None:
        """Let go of the shard; what is settled stays in its journal."""
        self.flush()
        self._file.close()
        self._lock.close()

    def _read(self) -> int:
        """Fill ``settled``; the number of bytes in whole lines."""
        content = self._part.read_bytes()
        whole = content.rfind(b"\n") + 1
        self._entries = _journal(content[:whole], self._part)
        self.settled = {row_id for _, row_id, _ in self._entries}
        return whole


def outcome_of(record: dict) -> Outcome:
    """What `Shard.append` wrote, as it was; tokens may be null in journals of earlier versions and count as 0."""
    verdict = Verdict(record["reason"], record["detail"]) if record["reason"] else None
    tokens = (count if isinstance(count, int) else 0 for count in record["tokens"])
    return Outcome(record["row"], verdict, record["attempts"], *tokens)


def _journal(content: bytes, path: Path) -> list[tuple[int, str, bytes]]:
    entries = []
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        try:
            record = json.loads(line)
            entries.append((record["place"], record["id"], line))
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{path}:{number}: not a settled row; was the file edited?") from None
    return entries
