"""The gates that a report asks again about the rows that were kept: does a response give the description away, and is
its format what the prompt asked for."""

import random
from collections.abc import Mapping
from typing import Any

from nemo_desta.recipes.gates.leak import LeakCheck
from nemo_desta.recipes.prompts.constraints import Constraint, obeys
from nemo_desta.recipes.report.thoughts import split_thought


class SampledLeaks:
    """The leak check's lexicon on every row, or on a seeded draw of them: it takes longer than all else together.

    ``rate``: share of the rows that are looked at. ``checked`` and ``found`` count them; ``examples`` are the first.
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
    """Name of the row's format constraint and whether its answer keeps to it; None for a row without one that can be
    checked, and for a truncated answer."""
    entry = row.get("constraint")
    if not entry or row.get("truncated"):
        return None
    try:
        name, args = (entry["name"], entry.get("args")) if isinstance(entry, Mapping) else entry
        kept = obeys(Constraint(name, tuple(args or ())), split_thought(row["response"]).answer)
    except (ValueError, TypeError, KeyError):
        return None  # of another version, or not ours
    return None if kept is None else (name, kept)
