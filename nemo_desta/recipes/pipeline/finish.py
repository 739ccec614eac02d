"""From finished shards to training rows: checks across rows, one set of files per split, the summary.

Shards are read in the plan's order, so the same shards give the same files, byte by byte.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nemo_desta.recipes.items import Rejection
from nemo_desta.recipes.pipeline.folder import RecipeFolder, dump_line, read_lines, write_json
from nemo_desta.recipes.pipeline.shard import outcome_of
from nemo_desta.recipes.pipeline.summary import Summary

#: A check across rows: why a row is rejected, given the rows before it, or None.
Check = Callable[[Mapping[str, Any]], Rejection | None]


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
    with folder.lock("finish", wait=True):
        if folder.finished:
            for left in (folder.shards, folder.shards.with_name(".shards.ended")):
                shutil.rmtree(left, ignore_errors=True)
            return read_summary(folder)
        if missing := folder.unfinished():
            return Summary(missing_shards=len(missing))
        summary = Summary(about=dict(about or {}))
        parts = [Path(f"{target}.part") for target in (folder.rows, folder.rejected)]
        for old in (*parts, folder.rows, folder.rejected):
            shutil.rmtree(old, ignore_errors=True)
        with _Writer(parts[0], rows_per_file) as rows, _Writer(parts[1], rows_per_file) as rejected:
            numbers = tqdm(range(folder.num_shards()), "finishing", unit="shard", disable=not progress, leave=False)
            for number in numbers:
                for record in read_lines(folder.shard_file(number)):
                    _place(record, checks, rows, rejected, summary)
        for part, target in zip(parts, (folder.rows, folder.rejected), strict=True):
            os.replace(part, target)
        seconds = folder.shards / "seconds.jsonl"
        summary.seconds = round(sum(r["seconds"] for r in read_lines(seconds)), 1) if seconds.exists() else 0.0
        write_json(folder.summary, summary.to_json())
        ended = folder.shards.with_name(".shards.ended")
        os.replace(folder.shards, ended)  # atomic: no process may find a half removed folder and start over
        shutil.rmtree(ended)
        return summary


def read_summary(folder: RecipeFolder) -> Summary:
    """The summary of a finished recipe."""
    return Summary.from_json(json.loads(folder.summary.read_text(encoding="utf-8")))


def _place(record: dict[str, Any], checks: Sequence[Check], rows: Any, rejected: Any, summary: Summary) -> None:
    outcome = outcome_of(record)
    row, verdict = outcome.row, outcome.verdict
    summary.attempts += outcome.attempts
    summary.prompt_tokens += outcome.prompt_tokens
    summary.new_tokens += outcome.new_tokens
    if verdict is None:
        verdict = next((found for check in checks if (found := check(row)) is not None), None)
    split = (row or {}).get("split") or "all"
    if verdict is None:
        rows.write(split, row)
        summary.rows[split] += 1
        summary.truncated += bool(row.get("truncated"))
        return
    summary.reject(verdict.reason, f"{record['id']} ({verdict.detail})")
    rejected.write(split, {"id": record["id"], "reason": verdict.reason, "detail": verdict.detail, "row": row})


class _Writer:
    """Numbered JSONL files per split, of at most ``rows_per_file`` rows each."""

    def __init__(self, folder: Path, rows_per_file: int) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.rows_per_file = rows_per_file
        self._files: dict[str, Any] = {}
        self._counts: dict[str, int] = {}

    def write(self, split: str, row: Mapping[str, Any]) -> None:
        count = self._counts.get(split, 0)
        if count % self.rows_per_file == 0:
            self._end(split)
            self._files[split] = (self.folder / f"{split}-{count // self.rows_per_file:05d}.jsonl").open("wb")
        self._files[split].write(dump_line(row))
        self._counts[split] = count + 1

    def _end(self, split: str) -> None:
        if file := self._files.pop(split, None):
            file.flush()
            os.fsync(file.fileno())
            file.close()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error: object) -> None:
        for split in list(self._files):
            self._end(split)
