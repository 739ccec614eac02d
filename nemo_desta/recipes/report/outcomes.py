"""What became of the prompts: rows kept and dropped, and grounded answers, by prompt, kind, attribute and corpus."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from nemo_desta.recipes.gates.wordings import grounded_attributes
from nemo_desta.recipes.prompts.prompt import read_probed

#: Different names that are counted per table; further ones count as `_OTHERS`.
_MOST = 20_000
_OTHERS = "(others)"


class Outcomes:
    """Counts kept and dropped rows. Rows without a prompt (the LLM failed) are not counted.

    ``probed``: right answers and all answers of a probe, by prompt_id, as recipe.json has them.
    """

    def __init__(self, probed: Any = None) -> None:
        self._probed = dict(probed) if isinstance(probed, Mapping) else {}
        self._scores: dict[str, tuple[int, int]] = {}  # of the probe, by prompt as it is counted
        self._counts: dict[str, dict[str, Counter[str]]] = {
            name: {} for name in ("prompt", "kind", "attribute", "corpus")
        }

    def add(self, row: Mapping[str, Any], *, kept: bool) -> None:
        """Count a row that was kept or dropped."""
        if not isinstance(prompt := row.get("prompt"), str) or not prompt:
            return
        requires = [name for name in row.get("prompt_requires") or () if isinstance(name, str)]
        grounded = grounded_attributes(row) if kept else {}
        whole = all(grounded.values()) if grounded else None
        shown = prompt if len(prompt) <= 500 else f"{prompt[:499]}…"
        if len(self._scores) < _MOST and (score := read_probed(self._probed.get(str(row.get("prompt_id"))))):
            self._scores[shown] = score
        self._count("prompt", shown, kept, whole)
        self._count("kind", row.get("prompt_kind"), kept, whole)
        self._count("corpus", row.get("dataset") or row.get("corpus"), kept, whole)
        for name in requires:
            self._count("attribute", name, kept, grounded.get(name))

    def to_json(self, most: int = 200) -> dict[str, Any]:
        """``by_prompt``, ``by_kind``, ...: name -> counts and shares, the ``most`` frequent ones."""
        tables = {f"by_{name}": _shares(table, most) for name, table in self._counts.items()}
        if self._scores:
            for prompt, line in tables["by_prompt"].items():
                right, asked = self._scores.get(prompt, (0, 0))
                line |= {"probed": asked, "probed_share": round(right / asked, 6) if asked else None}
        return tables

    def _count(self, table: str, name: Any, kept: bool, grounded: bool | None) -> None:
        counts = self._counts[table]
        name = str(name)[:500] if name not in (None, "") else "not said"
        if name not in counts and len(counts) >= _MOST:
            name = _OTHERS
        counted = counts.setdefault(name, Counter())
        counted["kept" if kept else "dropped"] += 1
        if grounded is not None:
            counted["checked"] += 1
            counted["grounded"] += grounded


def _shares(table: Mapping[str, Counter[str]], most: int) -> dict[str, Any]:
    frequent = sorted(table.items(), key=lambda item: (-item[1]["kept"] - item[1]["dropped"], item[0]))[:most]
    return {
        name: {
            "kept": counts["kept"],
            "dropped": counts["dropped"],
            "dropped_share": round(counts["dropped"] / (counts["kept"] + counts["dropped"]), 6),
            "checked": counts["checked"],
            "grounded": counts["grounded"],
            "grounded_share": round(counts["grounded"] / counts["checked"], 6) if counts["checked"] else None,
        }
        for name, counts in frequent
    }
