"""The output of a batch: a JSON line per answer, appended at once and whole after any kill. Its ids serve to resume.

answers.jsonl            {"id", "answer", "thinking", "finish", counts, "settings"}
answers.rejected.jsonl   rows without an answer, with the reason; rewritten by every run
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from nemo_desta.data.jsonl_log import JsonlLog, json_line
from nemo_desta.errors import ConfigError


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
        try:
            self._log = JsonlLog(self.path, lock=True)
        except BlockingIOError:
            raise ConfigError(f"another process writes {self.path}; give this one another output") from None
        self._read(kept)
        self._rejects = self.rejected.open("wb", buffering=0)

    def answer(self, row_id: str, answer: Mapping[str, Any]) -> None:
        """Append one answer."""
        self._log.append(json_line({"id": row_id, **answer, "settings": self.settings}))
        self.done.add(row_id)

    def reject(self, row_id: str | None, where: str, reason: str, detail: str) -> None:
        """Name a row without an answer."""
        self._rejects.write(json_line({"id": row_id, "where": where, "reason": reason, "detail": detail}))

    def close(self) -> None:
        """Close the files; an empty file of rejected rows is deleted."""
        self._log.close()
        is_empty = self._rejects.tell() == 0
        self._rejects.close()
        if is_empty:
            self.rejected.unlink()

    def _read(self, kept: Collection[str]) -> None:
        """Read the answers that are there and check that they follow from the same settings."""
        for number, line in enumerate(self._log.lines(), start=1):
            try:
                record = json.loads(line)
                row_id, settings = record["id"], dict(record["settings"])
            except (ValueError, TypeError, KeyError):
                raise ConfigError(f"{self.path}:{number} is no answer; give another output") from None
            if number == 1:
                decided = {key: settings[key] for key in kept if key in settings}
                self.settings = {key: value for key, value in self.settings.items() if key not in kept} | decided
            if settings != self.settings:
                pairs = {key: (settings.get(key), self.settings.get(key)) for key in {**settings, **self.settings}}
                found = [f"{key} (there: {old!r}, now: {new!r})" for key, (old, new) in pairs.items() if old != new]
                raise ConfigError(
                    f"{self.path} holds answers of other settings: {'; '.join(found)}. Give the same settings to "
                    "resume, or another output"
                )
            self.done.add(row_id)
