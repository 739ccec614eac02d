"""The figures of a report: one pass over the rows and the rejected ones, in memory that hardly grows.

Some 40 bytes per row stay (hashes that find duplicates and count distinct clips); everything else is capped.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nemo_desta.data.rows import Row, parse_row
from nemo_desta.errors import RowError
from nemo_desta.recipes.report.counts import first_few, top
from nemo_desta.recipes.report.sources import Line, Paths, RowsSource, find_rows, lines, split_of
from nemo_desta.recipes.report.tally import RejectedTally, RowTally, share

#: The leak check looks at no more rows than about these, unless it is told otherwise.
MAX_LEAK_CHECKS = 10_000

#: Called with what was read: a row or a rejected record, and its file and line.
Visitor = Callable[[Mapping[str, Any], Line], None]


def figures(
    rows: Paths,
    *,
    rejected: Paths | None = None,
    summary: str | Path | Mapping[str, Any] | None = None,
    prices: Mapping[str, float] | None = None,
    perplexity: Mapping[str, Any] | None = None,
    max_leak_checks: int | None = MAX_LEAK_CHECKS,
    progress: bool = False,
) -> dict[str, Any]:
    """Count what is in a rows folder, in JSONL files or patterns over them (`find_rows`).

    Lines that are no rows are counted by reason and passed over.

    Args:
        rejected, summary: where a folder does not bring its own.
        prices: per million tokens, ``{"prompt": 0.2, "new": 0.6}``, in whatever currency.
        perplexity: taken over as it is (`nemo_desta.recipes.perplexity.Perplexity.to_json`).
        max_leak_checks: of more rows than these, about so many are drawn for the leak check; None: every row.

    Raises:
        FileNotFoundError: nothing to read.
    """
    source = find_rows(rows, rejected=rejected, summary=summary)
    return count(source, prices=prices, perplexity=perplexity, max_leak_checks=max_leak_checks, progress=progress)


def count(
    source: RowsSource,
    *,
    prices: Mapping[str, float] | None = None,
    perplexity: Mapping[str, Any] | None = None,
    max_leak_checks: int | None = MAX_LEAK_CHECKS,
    progress: bool = False,
    see_row: Visitor | None = None,
    see_rejected: Visitor | None = None,
) -> dict[str, Any]:
    """`figures` of a found source; every row and every rejected record is also shown to its visitor."""
    wanted = max_leak_checks or 0
    tally = RowTally(1.0 if max_leak_checks is None else min(1.0, wanted / max(1, source.num_lines)))
    dropped = RejectedTally()
    unreadable: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    with tqdm(total=source.num_bytes, desc="reading rows", unit="B", unit_scale=True, disable=not progress) as bar:
        for line in _followed(lines(source.rows), bar):
            try:
                row = parse_row(line.raw, line.where)
            except RowError as error:
                unreadable[error.reason] += 1
                first_few(examples, error.reason, str(error))
                continue
            tally.add(row, split_of(row, line.path))
            if see_row is not None:
                see_row(row, line)
        for line in _followed(lines(source.rejected), bar):
            record = _record(line)
            if record is None:
                unreadable["rejected record"] += 1
                first_few(examples, "rejected record", f"{line.where}: not a JSON object")
                continue
            dropped.add(record)
            if see_rejected is not None:
                see_rejected(record, line)
    found = tally.figures()
    return {
        "name": source.name,
        "files": len(source.rows),
        "bytes": source.num_bytes,
        **found,
        "unreadable": {"lines": unreadable.total(), "reasons": top(unreadable), "examples": examples},
        "rejected": dropped.figures(tally.total) if source.rejected else _rejected_by(source.summary, tally.total),
        "speed": speed(source.summary, prices),
        "perplexity": dict(perplexity) if perplexity else None,
        "summary": dict(source.summary),
        "recipe": dict(source.recipe),
    }


def speed(summary: Mapping[str, Any], prices: Mapping[str, float] | None = None) -> dict[str, Any] | None:
    """Tokens per second and cost of a run by its summary; None without one.

    Raises:
        ValueError: prices of something else than ``prompt`` and ``new`` tokens.
    """
    if unknown := set(prices or {}) - {"prompt", "new"}:
        raise ValueError(f"prices: {sorted(unknown)[0]!r} is not known; give 'prompt' and 'new', per million tokens")
    seconds, new, prompt = (_number(summary.get(name)) for name in ("seconds", "new_tokens", "prompt_tokens"))
    if not (seconds or new or prompt):
        return None
    written = summary.get("written") or sum((summary.get("rows") or {}).values())
    cost = None
    if prices:
        cost = round((prompt * prices.get("prompt", 0.0) + new * prices.get("new", 0.0)) / 1e6, 6)
    return {
        "seconds": seconds,
        "prompt_tokens": prompt,
        "new_tokens": new,
        "attempts": summary.get("attempts"),
        "new_tokens_per_second": round(new / seconds, 2) if seconds else None,
        "rows_per_second": round(written / seconds, 3) if seconds else None,
        "prices_per_million": dict(prices) if prices else None,
        "cost": cost,
        "cost_per_1000_rows": round(1000 * cost / written, 6) if cost is not None and written else None,
    }


def _rejected_by(summary: Mapping[str, Any], kept: int) -> dict[str, Any] | None:
    """Drop reasons as a summary counts them, for rows that come without rejected ones."""
    reasons = summary.get("rejected")
    if not isinstance(reasons, Mapping):
        return None
    total = sum(reasons.values())
    return {"total": total, "share": share(total, total + kept), "reasons": top(Counter(reasons)), "examples": {}}


def _followed(found: Iterable[Line], bar: Any) -> Iterator[Line]:
    for line in found:
        yield line
        bar.update(len(line.raw))


def _record(line: Line) -> Row | None:
    try:
        record = json.loads(line.raw)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else 0
