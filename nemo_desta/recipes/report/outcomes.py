"""What became of the prompts: rows kept and dropped, and grounded answers, by prompt, kind, attribute and corpus.

An answer is grounded if it names the value that the description states of every attribute which the prompt requires
(`wordings`), and most of the words of a transcript.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from nemo_desta.core.think_tags import split_thought
from nemo_desta.data.rows import audio_entries
from nemo_desta.recipes.gates.wordings import wordings
from nemo_desta.recipes.languages import Languages

#: Different names that are counted per table; further ones count as `_OTHERS`.
_MOST = 20_000
_OTHERS = "(others)"


class Outcomes:
    """Counts kept and dropped rows. Rows without a prompt (the LLM failed) are not counted."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, Counter[str]]] = {
            name: {} for name in ("prompt", "kind", "attribute", "corpus")
        }
        self._languages = Languages()

    def add(self, row: Mapping[str, Any], *, kept: bool) -> None:
        """Count a row that was kept or dropped."""
        if not isinstance(prompt := row.get("prompt"), str) or not prompt:
            return
        requires = [name for name in row.get("prompt_requires") or () if isinstance(name, str)]
        grounded = dict(self._grounded(row, requires)) if kept else {}
        whole = all(grounded.values()) if grounded else None
        self._count("prompt", prompt if len(prompt) <= 500 else f"{prompt[:499]}…", kept, whole)
        self._count("kind", row.get("prompt_kind"), kept, whole)
        self._count("corpus", row.get("dataset") or row.get("corpus"), kept, whole)
        for name in requires:
            self._count("attribute", name, kept, grounded.get(name))

    def to_json(self, most: int = 200) -> dict[str, Any]:
        """``by_prompt``, ``by_kind``, ...: name -> counts and shares, the ``most`` frequent ones."""
        return {f"by_{name}": _shares(table, most) for name, table in self._counts.items()}

    def _grounded(self, row: Mapping[str, Any], requires: list[str]) -> Iterator[tuple[str, bool]]:
        """Each required attribute whose value is known, and whether the answer names it."""
        words = wordings(self._languages.of_row(row))
        answer = split_thought(row["response"]).answer.lower().replace("\u2019", "'")
        stated = words.stated(row)
        for name in requires:
            if name == "transcript":
                if text := " ".join(audio["text"] for audio in audio_entries(row) if audio.get("text")):
                    yield name, words.repeats(text, answer, cut=bool(row.get("truncated")))
            elif values := stated.get(name):
                yield name, words.names(name, values, answer)

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
