"""Writes a report: ``report.html``, one file that needs nothing else, and ``report.json``, the same figures."""

import json
import os
from collections.abc import Mapping
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from nemo_desta.data.audio_io import AudioRoots
from nemo_desta.data.rows import audio_entries
from nemo_desta.recipes.report.figures import MAX_LEAK_CHECKS, count
from nemo_desta.recipes.report.html import (
    attributes_section,
    card,
    perplexity_section,
    prompts_section,
    rejected_section,
    responses_section,
    rows_section,
    speed_section,
    tiles,
)
from nemo_desta.recipes.report.page import page
from nemo_desta.recipes.report.row_cards import rejected_card, row_card
from nemo_desta.recipes.report.samples import Reservoir, load_sound
from nemo_desta.recipes.report.sources import Line, Paths, find_rows, split_of

#: Clips of one row that are embedded; a row of more says how many there are.
_MAX_SOUNDS = 4


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
    """Read the rows once and write ``report.html`` and ``report.json`` into ``out_folder``; the HTML's path.

    Args:
        rows, rejected, summary, prices, perplexity, max_leak_checks: as `figures`.
        audio_root: the folder that audio paths start from, or one per dataset (`AudioRoots`); None: no clips.
        num_samples: rows to show with their clips, drawn by ``seed``; ``num_rejected`` likewise.

    Raises:
        FileNotFoundError: nothing to read.
    """
    source = find_rows(rows, rejected=rejected, summary=summary)
    drawn: Reservoir[tuple[Mapping[str, Any], Line]] = Reservoir(num_samples, seed)
    dropped: Reservoir[Mapping[str, Any]] = Reservoir(num_rejected, seed)
    found = count(
        source,
        prices=prices,
        perplexity=perplexity,
        max_leak_checks=max_leak_checks,
        progress=progress,
        see_row=lambda row, line: drawn.add((row, line)),
        see_rejected=lambda record, line: dropped.add(record),
    )
    title = title or f"Rows of {source.name}"
    roots = None if audio_root is None else AudioRoots(audio_root)
    cards = [_row(row, line, roots) for row, line in drawn.items]
    body = _body(title, found, cards, [rejected_card(record) for record in dropped.items])
    out = Path(out_folder)
    out.mkdir(parents=True, exist_ok=True)
    _replace(out / "report.json", json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    _replace(out / "report.html", page(title, body))
    return out / "report.html"


def _row(row: Mapping[str, Any], line: Line, roots: AudioRoots | None) -> str:
    entries = audio_entries(row)[:_MAX_SOUNDS]
    sounds = [load_sound(entry, roots, dataset=row.get("dataset")) for entry in entries]
    return row_card(row, sounds, split=split_of(row, line.path))


def _body(title: str, found: Mapping[str, Any], samples: list[str], rejected: list[str]) -> str:
    sections = [
        ("rows", "Rows", rows_section(found)),
        ("attributes", "What the descriptions state", attributes_section(found)),
        ("prompts", "Prompts", prompts_section(found)),
        ("responses", "Responses", responses_section(found)),
        ("perplexity", "Target perplexity", perplexity_section(found)),
        ("rejected", "Not kept", rejected_section(found)),
        ("speed", "Speed and cost", speed_section(found)),
        ("samples", f"{len(samples)} random rows", "".join(samples) or '<p class="none">none</p>'),
    ]
    if rejected:
        sections.append(("dropped", f"{len(rejected)} random rejected rows", "".join(rejected)))
    if found["recipe"] or found["summary"]:
        sections.append(("recipe", "Recipe", _recipe(found)))
    nav = "".join(f'<a href="#{key}">{escape(name)}</a>' for key, name, _ in sections)
    when = datetime.now().strftime("%Y-%m-%d %H:%M")
    files = f"{found['files']:,} file{'s' if found['files'] != 1 else ''}, {found['bytes'] / 1e6:,.1f} MB, read {when}"
    body = "".join(f'<h2 id="{key}">{escape(name)}</h2>{html}' for key, name, html in sections)
    return (
        f'<h1>{escape(title)}</h1><p class="sub">{files}</p><nav>{nav}</nav>{tiles(found)}{body}'
        "<footer>Written by nemo_desta. The same figures are in report.json.</footer>"
    )


def _recipe(found: Mapping[str, Any]) -> str:
    parts = []
    for name in ("recipe", "summary"):
        if found[name]:
            shown = escape(json.dumps(found[name], ensure_ascii=False, indent=1))
            parts.append(f"<details><summary>{name}.json</summary><pre>{shown}</pre></details>")
    return card("How these rows were made", "".join(parts))


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
