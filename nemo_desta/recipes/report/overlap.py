"""What rows share with other rows: duplicates, and clips or groups (speakers, recordings) on both sides of a split."""

from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from nemo_desta.data.rows import Row, audio_entries
from nemo_desta.recipes.report.sources import Line, split_of


class Overlap:
    """What rows have in common with other rows, as hashes: 8 bytes for each row, clip and group, and their places."""

    def __init__(self) -> None:
        self.files: list[Path] = []
        self.splits: list[str] = []
        self.keys, self.places = array("q"), array("q")  # one per row; a place is file number x 2^40 + line
        self.clips, self.clip_rows, self.clip_splits = array("q"), array("q"), array("H")
        self.groups, self.group_rows, self.group_splits = array("q"), array("q"), array("H")

    def add(self, row: Row, line: Line) -> None:
        if not self.files or self.files[-1] != line.path:
            self.files.append(line.path)
        split = split_of(row, line.path)
        if split not in self.splits:
            self.splits.append(split)
        number, split_number = len(self.keys), self.splits.index(split)
        dataset = row.get("dataset", "")
        self.keys.append(hash((dataset, row["id"], row.get("prompt") or row["messages"][-1]["content"])))
        self.places.append((len(self.files) - 1 << 40) + line.number)
        for entry in audio_entries(row):
            self.clips.append(hash((dataset, entry["audio"])))
            self.clip_rows.append(number)
            self.clip_splits.append(split_number)
        if isinstance(group := row.get("group"), str) and group:
            self.groups.append(hash((dataset, group)))
            self.group_rows.append(number)
            self.group_splits.append(split_number)

    def finish(self, found: Callable[[str, str], None]) -> None:
        """Tell of duplicates, and of clips and groups (speakers, recordings) on both sides of a split."""
        for first, again in _repeats(self.keys):
            what = "repeats dataset, id and prompt of"
            found("duplicate", f"{self._where(again)}: {what} {self._where(first)}")
        for name, hashes, rows, splits in (
            ("audio", self.clips, self.clip_rows, self.clip_splits),
            ("group", self.groups, self.group_rows, self.group_splits),
        ):
            for first, other in _crossings(hashes, splits):
                both = f"{self.splits[splits[other]]} shares its {name} with {self.splits[splits[first]]}"
                found(f"{name} in two splits", f"{self._where(rows[other])}: {both}, {self._where(rows[first])}")

    @property
    def groups_unknown(self) -> bool:
        """There are several splits, and no row says which speaker or recording it is of."""
        return len(self.splits) > 1 and not self.groups

    def _where(self, number: int) -> str:
        place = self.places[number]
        return f"{self.files[place >> 40]}:{place & (1 << 40) - 1}"


def _repeats(hashes: array) -> Iterator[tuple[int, int]]:
    """(first position, later position) of every value that comes again, in order."""
    order, starts = _grouped(hashes)
    first_of = np.repeat(order[starts], np.diff(np.append(starts, len(order))))
    again = np.sort(order[order != first_of])
    lookup = dict(zip(order[order != first_of].tolist(), first_of[order != first_of].tolist(), strict=True))
    yield from ((lookup[place], place) for place in again.tolist())


def _crossings(hashes: array, splits: array) -> Iterator[tuple[int, int]]:
    """For every value found in several splits: the position where it was first, and where first in another one."""
    if not hashes:
        return
    order, starts = _grouped(hashes)
    where = np.frombuffer(splits, np.uint16)[order]
    low, high = np.minimum.reduceat(where, starts), np.maximum.reduceat(where, starts)
    ends = np.append(starts[1:], len(order))
    found = []
    for group in np.flatnonzero(low != high).tolist():
        members = slice(starts[group], ends[group])
        other = np.flatnonzero(where[members] != where[members][0])[0]
        found.append((int(order[members][0]), int(order[members][other])))
    yield from sorted(found, key=lambda pair: pair[1])


def _grouped(hashes: array) -> tuple[np.ndarray, np.ndarray]:
    """Positions ordered by value (equals in their own order), and where in them each value begins."""
    values = np.frombuffer(hashes, np.int64) if hashes else np.zeros(0, np.int64)
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]])) if len(ranked) else order
    return order, starts
