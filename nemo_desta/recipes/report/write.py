"""Writes a report: ``report.html``, a single file without links, and ``report.json``, the same statistics."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from nemo_desta.core.think_tags import split_thought
from nemo_desta.data.audio_io import AudioRoots
from nemo_desta.data.rows import audio_entries
from nemo_desta.recipes.report.compute import MAX_LEAK_CHECKS, compute_stats
from nemo_desta.recipes.report.render import render
from nemo_desta.recipes.report.row_stats import prompt_of
from nemo_desta.recipes.report.samples import Reservoir, load_sound
from nemo_desta.recipes.report.sources import Line, Paths, split_of

#: At most this many clips of one row are embedded.
_MAX_SOUNDS = 4
_SPLITS = ("train", "valid", "validation", "dev", "eval", "test", "all")
#: Fields that a row's card shows in a place of their own; the others are its provenance.
_SHOWN = {"id", "dataset", "seed_description", "prompt", "messages", "response", "first_response"}


def write_report(
    rows: Paths,
    out_folder: str | Path,
    *,
    audio_root: str | Path | Mapping[str, str | Path] | None = None,
    rejected: Paths | None = None,
    summary: str | Path | Mapping[str, Any] | None = None,
    num_samples: int = 20,
    num_rejected: int = 8,
    seed: int = 0,
    prices: Mapping[str, float] | None = None,
    perplexity: Mapping[str, Any] | None = None,
    max_leak_checks: int | None = MAX_LEAK_CHECKS,
    title: str | None = None,
    progress: bool = True,
) -> Path:
    """Read the rows once, write ``report.html`` and ``report.json`` into ``out_folder``, and return the HTML's path.

    Args:
        rows, rejected, summary, prices, perplexity, max_leak_checks: as in `compute_stats`.
        audio_root: the folder that audio paths start from, or one per dataset (`AudioRoots`); None: no clips.
        num_samples: number of random rows that are shown with their clips; ``seed`` decides which.
        num_rejected: number of random rejected rows that are shown.

    Raises:
        FileNotFoundError: there are no rows.
    """
    from nemo_desta.recipes.pipeline.folder import write_json, write_lines  # needs the recipes' packages

    drawn: Reservoir[tuple[Mapping[str, Any], Line]] = Reservoir(num_samples, seed)
    dropped: Reservoir[Mapping[str, Any]] = Reservoir(num_rejected, seed)
    found = compute_stats(
        rows,
        rejected=rejected,
        summary=summary,
        prices=prices,
        perplexity=perplexity,
        max_leak_checks=max_leak_checks,
        progress=progress,
        see_row=lambda row, line: drawn.add((row, line)),
        see_rejected=lambda record, line: dropped.add(record),
    )
    roots = None if audio_root is None else AudioRoots(audio_root)
    files = f"{found['files']:,} file{'s' if found['files'] != 1 else ''}, {found['bytes'] / 1e6:,.1f} MB"
    corpora = [(name, inside, sum(inside.values())) for name, inside in found["rows"]["by_corpus_and_split"].items()]
    html = render(
        "recipes/report/templates/report.html.jinja",
        title=title or f"Rows of {found['name']}",
        read=f"{files}, read {datetime.now():%Y-%m-%d %H:%M}",
        found=found,
        corpora=sorted(corpora, key=lambda corpus: (-corpus[2], corpus[0])),
        splits=sorted(found["rows"]["by_split"], key=lambda split: ((*_SPLITS, split).index(split), split)),
        scores={"these rows": perplexity["own"], **(perplexity.get("others") or {})} if perplexity else {},
        samples=[_row_card(row, line, roots) for row, line in drawn.items],
        dropped=[_rejected_card(record) for record in dropped.items],
    )
    out = Path(out_folder)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "report.json", found)
    write_lines(out / "report.html", [html.encode()])
    return out / "report.html"


def _row_card(row: Mapping[str, Any], line: Line, roots: AudioRoots | None) -> dict[str, Any]:
    entries = audio_entries(row)[:_MAX_SOUNDS]
    return {
        "id": row["id"],
        "tags": [row.get("dataset"), split_of(row, line.path), row.get("stage"), row.get("prompt_kind")],
        "truncated": row.get("truncated"),
        "sounds": [load_sound(entry, roots, dataset=row.get("dataset")) for entry in entries],
        "texts": list(_texts(row)),
        "provenance": {name: value for name, value in row.items() if name not in _SHOWN},
    }


def _rejected_card(record: Mapping[str, Any]) -> dict[str, Any]:
    row = record.get("row")
    whole = isinstance(row, Mapping) and isinstance(row.get("response"), str)
    return {
        "id": record.get("id"),
        "reason": record.get("reason"),
        "detail": str(record.get("detail") or ""),
        "texts": list(_texts(row)) if whole and (row.get("prompt") or row.get("messages")) else [],
    }


def _texts(row: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(label, CSS class or "folded", text) of each text of the row, in reading order."""
    if description := row.get("seed_description"):
        yield "Description that the LLM read in place of the audio", "description", str(description)
    for message in row.get("messages") or ():
        if isinstance(message, Mapping) and message.get("role") == "system":
            yield "System", "description", str(message.get("content"))
    yield "Prompt", "prompt", str(row.get("prompt") or prompt_of(row))
    thought, answer = split_thought(row["response"])
    if thought is not None:
        yield f"thought, {len(thought.split()):,} words", "folded", thought
    yield "Response", "response", answer or "(no text after the thought)"
    if isinstance(first := row.get("first_response"), str):
        yield "the first answer, before it was rewritten", "folded", first
