"""One shard in progress: its lock, its journal, and the finished file in the plan's order."""

import json

from nemo_desta.data.jsonl_log import JsonlLog, try_lock
from nemo_desta.recipes.items import Outcome, Rejection
from nemo_desta.recipes.pipeline.folder import RecipeFolder, dump_line, write_lines

#: A write holds at most LINES_TOGETHER rows; the driver also flushes every FLUSH_SECS.
LINES_TOGETHER, FLUSH_SECS = 32, 0.1


class Shard:
    """Shard ``number`` of a folder, held by this process from `claim` until `finish` or `release`.

    ``settled``: ids whose outcome is in the journal. The driver adds to ``ids`` all rows that it has read of the plan,
    in the plan's order. ``waiting``: how many of them have no outcome, plus one until the whole plan is read.
    """

    def __init__(self, folder: RecipeFolder, number: int, lock: object) -> None:
        self.folder = folder
        self.number = number
        self._lock = lock
        self._part = folder.shards / f"{number:05d}.part"
        self._log = JsonlLog(self._part)
        self._lines: list[bytes] = []
        self._entries: list[tuple[int, str, bytes]] = []  # the whole journal: place, id, line
        for line_number, line in enumerate(self._log.lines(), start=1):
            try:
                record = json.loads(line)
                self._entries.append((record["place"], record["id"], line))
            except (ValueError, TypeError, KeyError):
                raise ValueError(f"{self._part}:{line_number}: not a settled row; was the file edited?") from None
        self.settled = {row_id for _, row_id, _ in self._entries}
        self.ids: list[str] = []
        self.waiting = 1

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
        """Record the outcome of a row; ``place``: its position in this shard's plan."""
        row, verdict, attempts, *tokens = outcome
        reason, detail = verdict or (None, None)
        record = {"place": place, "id": row_id, "reason": reason, "detail": detail, "row": row}
        line = dump_line({**record, "attempts": attempts, "tokens": tokens})
        self._entries.append((place, row_id, line))
        self._lines.append(line)
        self.settled.add(row_id)
        if len(self._lines) >= LINES_TOGETHER:
            self.flush()

    def flush(self) -> None:
        """Write settled rows to the file; they then survive a kill of this process."""
        if self._lines:
            self._log.append(b"".join(self._lines))
            self._lines.clear()

    def finish(self) -> None:
        """Write the finished file, in the plan's order, and release the shard. Raises `RuntimeError` if the journal
        holds other rows than the plan."""
        self._entries.sort()
        if [row_id for _, row_id, _ in self._entries] != self.ids:
            raise RuntimeError(f"{self._part} holds {len(self._entries)} rows, the plan wants {len(self.ids)} others")
        write_lines(self.folder.shard_file(self.number), (line for _, _, line in self._entries))
        self.release()
        self._part.unlink(missing_ok=True)

    def release(self) -> None:
        """Release the shard; settled rows stay in its journal."""
        self.flush()
        self._log.close()
        self._lock.close()


def outcome_of(record: dict) -> Outcome:
    """The outcome in a record of `Shard.append`. Tokens may be null in journals of earlier versions and count as 0."""
    verdict = Rejection(record["reason"], record["detail"]) if record["reason"] else None
    tokens = (count if isinstance(count, int) else 0 for count in record["tokens"])
    return Outcome(record["row"], verdict, record["attempts"], *tokens)
