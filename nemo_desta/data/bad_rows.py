"""The log of rows that could not be used: each is logged once, counted by reason, and written to a file."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from nemo_desta.data.jsonl_log import append_shared, read_shared

logger = logging.getLogger(__name__)


class TooManyBadRows(RuntimeError):
    """The share of bad rows is above the limit: something is wrong with the data or its paths."""


@dataclass(eq=False)
class BadRowLog:
    """Runs in the main process of one rank and receives the batches that a step consumed.

    Args:
        path: JSON lines file of bad rows; rows already in it are not logged again. None: log only.
        max_share: bad rows / rows seen above which the run stops, once at least ``min_bad_rows`` were bad.
        quiet: only count, because another process with the same batches logs them.
    """

    path: str | Path | None = None
    _: KW_ONLY
    max_share: float = 0.05
    min_bad_rows: int = 20
    quiet: bool = False

    def __post_init__(self) -> None:
        self.path = Path(self.path) if self.path is not None else None
        self.num_rows = 0  # rows seen, good and bad, in all epochs
        self.num_bad = 0
        self.reasons: Counter[str] = Counter()  # of different rows
        self._named: set[tuple[str, str]] = set()
        for row in read_shared(self.path) if self.path is not None else ():
            key = (row.get("where"), row.get("reason"))
            if all(isinstance(part, str) for part in key) and key not in self._named:
                self._count(row)

    def update(self, num_good: int, bad_rows: Sequence[Mapping[str, Any]]) -> None:
        """Account for one consumed batch.

        Raises:
            TooManyBadRows: the limit is exceeded.
        """
        self.num_rows += num_good + len(bad_rows)
        self.num_bad += len(bad_rows)
        new = [row for row in bad_rows if (row["where"], row["reason"]) not in self._named]
        if new and not self.quiet and self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        for row in new:
            self._count(row)
            if not self.quiet:
                logger.warning("bad row '%s' (%s), %s: %s", row["id"], row["where"], row["reason"], row["detail"])
                if self.path is not None:
                    append_shared(self.path, row)
        if new and not self.quiet:
            logger.warning("%s", self.summary())
        if self.num_bad >= self.min_bad_rows and self.num_bad > self.max_share * self.num_rows:
            raise TooManyBadRows(
                f"{self.num_bad} of {self.num_rows} rows could not be used ({self.num_bad / self.num_rows:.1%}; the "
                f"limit is {self.max_share:.1%}, data.bad_rows.max_share). {self.summary()}. The last one: "
                f"{bad_rows[-1]['id']}: {bad_rows[-1]['detail']}"
            )

    def _count(self, row: Mapping[str, Any]) -> None:
        self._named.add((row["where"], row["reason"]))
        self.reasons[row["reason"]] += 1

    def summary(self) -> str:
        """Counts by reason, most frequent first."""
        counts = ", ".join(f"{number} {reason}" for reason, number in self.reasons.most_common())
        where = f" (listed in {self.path})" if self.path is not None else ""
        return f"different bad rows so far: {counts or 'none'}{where}"

    def state_dict(self) -> dict[str, int]:
        return {"num_rows": self.num_rows, "num_bad": self.num_bad}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.num_rows, self.num_bad = state["num_rows"], state["num_bad"]
