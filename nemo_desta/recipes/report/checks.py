"""Two gates that a report runs again on the kept rows: leaks of the description, and the requested format."""

import random
from collections.abc import Mapping
from typing import Any

from nemo_desta.core.think_tags import split_thought
from nemo_desta.recipes.gates.leak import LeakCheck
from nemo_desta.recipes.prompts.constraints import Constraint, obeys


class SampledLeaks:
    """The lexical leak check on a random share of the rows: it takes longer than the rest of the report.

    ``rate``: share of the rows to check. ``checked`` and ``found`` count rows; ``examples`` holds the first leaks.
    """

    def __init__(self, rate: float = 1.0, seed: int = 0) -> None:
        self.rate = rate
        self.checked = self.found = 0
        self.examples: list[dict[str, str]] = []
        self._check = LeakCheck().check
        self._random = random.Random(seed)

    def add(self, row: Mapping[str, Any]) -> None:
        if self.rate < 1.0 and self._random.random() >= self.rate:
            return
        self.checked += 1
        verdict = self._check(row)
        if verdict is not None:
            self.found += 1
            if len(self.examples) < 8:
                self.examples.append({"id": row["id"], "detail": verdict.detail[:300]})


def constraint_kept(row: Mapping[str, Any]) -> tuple[str, bool] | None:
    """(name, obeyed) of the row's format constraint. None: there is none, it cannot be checked, or the answer is
    truncated."""
    entry = row.get("constraint")
    if not entry or row.get("truncated"):
        return None
    try:
        name, args = (entry["name"], entry.get("args")) if isinstance(entry, Mapping) else entry
        kept = obeys(Constraint(name, tuple(args or ())), split_thought(row["response"]).answer)
    except (ValueError, TypeError, KeyError):
        return None  # a constraint of another version or another project
    return None if kept is None else (name, kept)
