"""The summary of a recipe: counts of kept and rejected rows, and their cost in tokens and seconds."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

#: Examples kept per reason.
EXAMPLES = 3


@dataclass
class Summary:
    """Counts of all wanted rows. ``rows``: kept, by split; ``rejected``: by reason, with ``examples``.

    ``seconds``: sum over all processes; a shard that a kill interrupted counts from the restart.
    ``missing_shards``: shards that other processes still work on; ``rows/`` is written after the last of them.
    """

    rows: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    truncated: int = 0
    attempts: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    missing_shards: int = 0
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def written(self) -> int:
        return sum(self.rows.values())

    @property
    def num_rejected(self) -> int:
        return sum(self.rejected.values())

    def reject(self, reason: str, what: str) -> None:
        self.rejected[reason] += 1
        if len(examples := self.examples.setdefault(reason, [])) < EXAMPLES:
            examples.append(what if len(what) <= 200 else f"{what[:197]}...")

    def to_json(self) -> dict[str, Any]:
        plain = asdict(self)
        about = plain.pop("about")
        plain["rows"], plain["rejected"] = dict(sorted(self.rows.items())), dict(self.rejected.most_common())
        return {"written": self.written, **plain, **about}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> "Summary":
        names = set(cls.__dataclass_fields__) - {"about"}
        known = {name: plain[name] for name in names if name in plain}
        known |= {"rows": Counter(known["rows"]), "rejected": Counter(known["rejected"])}
        about = {name: value for name, value in plain.items() if name not in names and name != "written"}
        return cls(**known, about=about)

    def __str__(self) -> str:
        if self.missing_shards:
            return f"{self.missing_shards} shards are held by other processes; the last one to finish writes rows/"
        by_split = ", ".join(f"{split} {count}" for split, count in sorted(self.rows.items()))
        lines = [f"rows written: {self.written} ({by_split or 'none'}; {self.truncated} of them truncated)"]
        lines.append(f"rows rejected: {self.num_rejected}")
        for reason, count in self.rejected.most_common():
            lines.append(f"  {reason}: {count}, such as {'; '.join(self.examples.get(reason, []))}")
        if self.new_tokens and self.seconds:
            lines.append(f"tokens: {self.new_tokens} in {self.seconds:.0f} s ({self.new_tokens / self.seconds:.0f}/s)")
        return "\n".join(lines)
