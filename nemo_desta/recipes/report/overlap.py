"""Finds duplicate rows, and clips or groups (speakers, recordings) that are in two splits."""

from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nemo_desta.data.rows import Row, audio_entries
from nemo_desta.recipes.hashes import HashList
from nemo_desta.recipes.report.row_stats import prompt_of
from nemo_desta.recipes.report.sources import Line, split_of


class Overlap:
    """Keeps 8 bytes for each row, clip and group, and the position of each."""

    def __init__(self) -> None:
        self.files: list[Path] = []
        self.splits: list[str] = []
        self.keys, self.lines, self.row_splits = HashList(), array("q"), array("H")  # line: file number x 2^40 + line
        self.shared = {name: (HashList(), array("q")) for name in ("audio", "group")}  # hashes, row of each hash

    def add(self, row: Row, line: Line) -> None:
        if not self.files or self.files[-1] != line.path:
            self.files.append(line.path)
        split = split_of(row, line.path)
        if split not in self.splits:
            self.splits.append(split)
        dataset, group = row.get("dataset", ""), row.get("group")
        values = [("audio", entry["audio"]) for entry in audio_entries(row)]
        values += [("group", group)] if isinstance(group, str) and group else []
        for name, value in values:
            hashes, rows = self.shared[name]
            hashes.append((dataset, value))
            rows.append(len(self.keys))
        self.keys.append((dataset, row["id"], prompt_of(row)))
        self.lines.append((len(self.files) - 1 << 40) + line.number)
        self.row_splits.append(self.splits.index(split))

    def finish(self, found: Callable[[str, str], None]) -> None:
        """Call ``found(reason, text)`` for every duplicate row, and for every clip and group that is in two splits."""
        firsts = self.keys.firsts()
        for again in np.flatnonzero(firsts != np.arange(len(firsts))).tolist():
            where = f"{self._where(again)}: repeats dataset, id and prompt of {self._where(firsts[again])}"
            found("duplicate", where)
        for name, (hashes, rows) in self.shared.items():
            firsts = hashes.firsts()
            splits = np.array(self.row_splits, dtype=np.uint16)[np.array(rows, dtype=np.int64)]
            crossing = np.flatnonzero(splits != splits[firsts])
            for other in np.sort(crossing[np.unique(firsts[crossing], return_index=True)[1]]).tolist():
                first = int(firsts[other])
                both = f"{self.splits[splits[other]]} shares its {name} with {self.splits[splits[first]]}"
                found(f"{name} in two splits", f"{self._where(rows[other])}: {both}, {self._where(rows[first])}")

    @property
    def groups_unknown(self) -> bool:
        """There are several splits, and no row names its speaker or recording."""
        return len(self.splits) > 1 and not len(self.shared["group"][0])

    def _where(self, row: int) -> str:
        return f"{self.files[self.lines[row] >> 40]}:{self.lines[row] & (1 << 40) - 1}"
