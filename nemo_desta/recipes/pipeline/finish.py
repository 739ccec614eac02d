"""From finished shards to training rows: checks across rows, one set of files per split, the summary.

Shards are read in the plan's order, so the same shards give the same files, byte by byte.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nemo_desta.progress import track
from nemo_desta.recipes.items import Rejection
from nemo_desta.recipes.pipeline.folder import RecipeFolder, dump_line, read_lines, write_json
from nemo_desta.recipes.pipeline.shard import outcome_of

#: A check across rows: why a row is rejected, given the rows before it, or None.
Check = Callable[[Mapping[str, Any]], Rejection | None]


@dataclass
class Summary:
    """Counts of all wanted rows. ``rows``: kept, by split; ``rejected``: by reason, with three ``examples`` each.

    ``seconds``: sum over all processes; a shard that a kill interrupted counts from the restart.
    ``gates_absent``: kept rows that a gate could not judge for lack of words in their language, by gate.
    ``missing_shards``: shards that other processes still work on; ``rows/`` is written after the last of them.
    """

    rows: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    gates_absent: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    attempts: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    missing_shards: int = 0
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def written(self) -> int:
        return self.rows.total()

    @property
    def num_rejected(self) -> int:
        return self.rejected.total()

    def __str__(self) -> str:
        if self.missing_shards:
            return f"{self.missing_shards} shards are held by other processes; the last one to finish writes rows/"
        by_split = ", ".join(f"{split} {count}" for split, count in sorted(self.rows.items()))
        written = f"rows written: {self.written} ({by_split or 'none'}; {self.truncated} of them truncated)"
        lines = [written, f"rows rejected: {self.num_rejected}"]
        for reason, count in self.rejected.most_common():
            lines.append(f"  {reason}: {count}, such as {'; '.join(self.examples.get(reason, []))}")
        for gate, count in self.gates_absent.most_common():
            lines.append(f"gate {gate} absent: {count} rows not judged (no words in their language)")
        if self.new_tokens and self.seconds:
            lines.append(f"tokens: {self.new_tokens} in {self.seconds:.0f} s ({self.new_tokens / self.seconds:.0f}/s)")
        return "\n".join(lines)


def finish(
    folder: RecipeFolder,
    checks: Sequence[Check] = (),
    *,
    rows_per_file: int = 10_000,
    about: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Summary:
    """Write ``rows/``, ``rejected/`` and ``summary.json``, and remove the shards; once per folder.

    ``about``: further entries of the summary. While other processes still work on shards, nothing is written and the
    summary gives the number of missing shards. After a kill the shards are still there and the next call starts over.
    """
    ended = folder.shards.with_name(".shards.ended")
    with folder.lock("finish", wait=True):
        if folder.finished:
            for left in (folder.shards, ended):
                shutil.rmtree(left, ignore_errors=True)
            return read_summary(folder)
        if missing := folder.unfinished():
            return Summary(missing_shards=len(missing))
        summary = Summary(about=dict(about or {}))
        parts = [Path(f"{target}.part") for target in (folder.rows, folder.rejected)]
        for old in (*parts, folder.rows, folder.rejected):
            shutil.rmtree(old, ignore_errors=True)
        with closing(_Writer(parts[0], rows_per_file)) as rows, closing(_Writer(parts[1], rows_per_file)) as rejected:
            total = folder.num_shards()
            for number in track(range(total), "finishing", total, unit="shards", shown=progress, leave=False):
                for record in read_lines(folder.shard_file(number)):
                    _place(record, checks, rows, rejected, summary)
        for part, target in zip(parts, (folder.rows, folder.rejected), strict=True):
            os.replace(part, target)
        seconds = folder.shards / "seconds.jsonl"
        summary.seconds = round(sum(r["seconds"] for r in read_lines(seconds)), 1) if seconds.exists() else 0.0
        counts = {"rows": dict(sorted(summary.rows.items())), "rejected": dict(summary.rejected.most_common())}
        counts["gates_absent"] = dict(summary.gates_absent.most_common())
        plain = {"written": summary.written, **asdict(summary), **counts}
        if not plain["gates_absent"]:
            del plain["gates_absent"]
        write_json(folder.summary, plain | plain.pop("about"))
        os.replace(folder.shards, ended)  # atomic: no process may find a half removed folder and start over
        shutil.rmtree(ended)
        return summary


def read_summary(folder: RecipeFolder) -> Summary:
    """The summary of a finished recipe."""
    plain = json.loads(folder.summary.read_text(encoding="utf-8"))
    plain.pop("written", None)
    names = {item.name for item in fields(Summary)} - {"about"}
    known = {name: plain.pop(name) for name in names & plain.keys()}
    counters = {key: Counter(known.get(key, {})) for key in ("rows", "rejected", "gates_absent")}
    return Summary(**known | counters, about=plain)


def _place(record: dict[str, Any], checks: Sequence[Check], rows: Any, rejected: Any, summary: Summary) -> None:
    row, verdict, attempts, prompt_tokens, new_tokens = outcome_of(record)
    summary.attempts += attempts
    summary.prompt_tokens += prompt_tokens
    summary.new_tokens += new_tokens
    if verdict is None:
        verdict = next((found for check in checks if (found := check(row)) is not None), None)
    split = (row or {}).get("split") or "all"
    if verdict is None:
        rows.write(split, row)
        summary.rows[split] += 1
        summary.gates_absent.update(row.get("gates_absent", ()))
        summary.truncated += bool(row.get("truncated"))
        return
    summary.rejected[verdict.reason] += 1
    if len(examples := summary.examples.setdefault(verdict.reason, [])) < 3:
        what = f"{record['id']} ({verdict.detail})"
        examples.append(what if len(what) <= 200 else f"{what[:197]}...")
    rejected.write(split, {"id": record["id"], "reason": verdict.reason, "detail": verdict.detail, "row": row})


class _Writer:
    """Numbered JSONL files per split, of at most ``rows_per_file`` rows each."""

    def __init__(self, folder: Path, rows_per_file: int) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.rows_per_file = rows_per_file
        self._files: dict[str, Any] = {}
        self._counts: Counter[str] = Counter()

    def write(self, split: str, row: Mapping[str, Any]) -> None:
        number, place = divmod(self._counts[split], self.rows_per_file)
        if place == 0:
            self._end(split)
            self._files[split] = (self.folder / f"{split}-{number:05d}.jsonl").open("wb")
        self._files[split].write(dump_line(row))
        self._counts[split] += 1

    def _end(self, split: str) -> None:
        if file := self._files.pop(split, None):
            file.flush()
            os.fsync(file.fileno())
            file.close()

    def close(self) -> None:
        for split in list(self._files):
            self._end(split)
