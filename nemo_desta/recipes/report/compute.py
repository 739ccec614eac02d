"""Computes the statistics of a report in one pass over the kept and the rejected rows.

Memory grows by about 40 bytes per row (hashes that find duplicates and count clips); all other counters are capped.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nemo_desta.data.rows import parse_row
from nemo_desta.errors import RowError
from nemo_desta.progress import Progress
from nemo_desta.recipes.report.counters import Reasons, top
from nemo_desta.recipes.report.outcomes import Outcomes
from nemo_desta.recipes.report.row_stats import RowStats, share, short_word
from nemo_desta.recipes.report.sources import Line, Paths, find_rows, lines, split_of

#: Default of ``max_leak_checks``.
MAX_LEAK_CHECKS = 10_000

#: Called with each row or rejected record, and its file and line.
Visitor = Callable[[Mapping[str, Any], Line], None]


def compute_stats(
    rows: Paths,
    *,
    rejected: Paths | None = None,
    summary: str | Path | Mapping[str, Any] | None = None,
    prices: Mapping[str, float] | None = None,
    perplexity: Mapping[str, Any] | None = None,
    max_leak_checks: int | None = MAX_LEAK_CHECKS,
    progress: bool = False,
    see_row: Visitor | None = None,
    see_rejected: Visitor | None = None,
) -> dict[str, Any]:
    """Statistics of a rows folder, of JSONL files, or of patterns over them (`find_rows`).

    Lines that are not rows are counted by reason and skipped.

    Args:
        rejected, summary: default: those of the folder.
        prices: per million tokens in any currency, ``{"prompt": 0.2, "new": 0.6}``.
        perplexity: `nemo_desta.recipes.report.perplexity.Perplexity.to_json`, copied into the result.
        max_leak_checks: the leak check reads about so many random rows; None: every row.
        see_row, see_rejected: get every row and every rejected record.

    Raises:
        FileNotFoundError: there are no rows.
    """
    source = find_rows(rows, rejected=rejected, summary=summary)
    wanted = max_leak_checks or 0
    stats = RowStats(1.0 if max_leak_checks is None else min(1.0, wanted / max(1, source.num_lines)))
    unreadable, dropped, outcomes = Reasons(), Reasons(), Outcomes(source.recipe.get("probed"))
    with Progress("reading rows", source.num_bytes / 1e6, unit="MB", shown=progress, leave=False) as bar:
        for line in lines(source.rows, bar):
            try:
                row = parse_row(line.raw, line.where)
            except RowError as error:
                unreadable.add(error.reason, str(error))
                continue
            stats.add(row, split_of(row, line.path))
            outcomes.add(row, kept=True)
            if see_row is not None:
                see_row(row, line)
        for line in lines(source.rejected, bar):
            try:
                record = json.loads(line.raw)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                unreadable.add("rejected record", f"{line.where}: not a JSON object")
                continue
            example = {"id": short_word(record.get("id")), "detail": str(record.get("detail") or "")[:300]}
            dropped.add(short_word(record.get("reason")), example)
            if isinstance(record.get("row"), dict):
                outcomes.add(record["row"], kept=False)
            if see_rejected is not None:
                see_rejected(record, line)
    reasons, total = dropped.counts.most_common(), dropped.counts.total
    if not source.rejected:  # rows without files of rejected records
        counted = source.summary.get("rejected")
        reasons = top(counted) if isinstance(counted, Mapping) else None
        total = sum((reasons or {}).values())
    part = share(total, total + stats.total)
    rejected_stats = {"total": total, "share": part, "reasons": reasons, "examples": dropped.examples}
    return {
        "name": source.name,
        "files": len(source.rows),
        "bytes": source.num_bytes,
        **stats.to_json(),
        "outcomes": outcomes.to_json(),
        "unreadable": {
            "lines": unreadable.counts.total,
            "reasons": unreadable.counts.most_common(),
            "examples": unreadable.examples,
        },
        "rejected": None if reasons is None else rejected_stats,
        "speed": speed(source.summary, prices),
        "perplexity": dict(perplexity) if perplexity else None,
        "summary": dict(source.summary),
        "recipe": dict(source.recipe),
    }


def speed(summary: Mapping[str, Any], prices: Mapping[str, float] | None = None) -> dict[str, Any] | None:
    """Tokens per second and cost of a run, from its summary; None without a summary. Raises ``ValueError`` if
    ``prices`` has a key other than ``prompt`` and ``new``."""
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


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else 0
