"""Plots as inline SVG, made by hand so that a report stays small: bars in a table, histograms. Colours: the page's."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any


def bars(
    counts: Mapping[str, int], *, total: int | None = None, limit: int = 12, kind: str = "", wide: bool = False
) -> str:
    """A table with one bar per value, the widest the most frequent; a last line counts the values beyond ``limit``.

    ``total``: shares are of this; the sum of the counts when None. ``kind``: CSS class of the bars.
    ``wide``: long names, which get most of the room.
    """
    if not counts:
        return '<p class="none">none</p>'
    whole = total or sum(counts.values())
    shown = list(counts.items())[:limit]
    widest = max(counts.values())
    rows = [_bar(name, [(kind, count)], count, whole, widest) for name, count in shown]
    if rest := len(counts) - len(shown):
        left = sum(list(counts.values())[limit:])
        rows.append(f'<tr class="rest"><th>{rest} more</th><td></td>{_numbers(left, whole)}</tr>')
    return f'<table class="bars{" long" if wide else ""}">{"".join(rows)}</table>'


def stacked_bars(counts: Mapping[str, Mapping[str, int]], parts: Sequence[str], *, limit: int = 30) -> str:
    """As `bars`, each bar divided into ``parts`` (colours ``part0``, ``part1``, ...), with a legend."""
    if not counts:
        return '<p class="none">none</p>'
    totals = {name: sum(inside.values()) for name, inside in counts.items()}
    whole, widest = sum(totals.values()), max(totals.values())
    ranked = sorted(totals, key=lambda name: (-totals[name], name))
    rows = [
        _bar(
            name,
            [(f"part{i % 6}", counts[name].get(part, 0)) for i, part in enumerate(parts)],
            totals[name],
            whole,
            widest,
        )
        for name in ranked[:limit]
    ]
    if len(ranked) > limit:
        left = sum(totals[name] for name in ranked[limit:])
        rows.append(f'<tr class="rest"><th>{len(ranked) - limit} more</th><td></td>{_numbers(left, whole)}</tr>')
    legend = "".join(f'<span><i class="part{i % 6}"></i>{escape(part)}</span>' for i, part in enumerate(parts))
    return f'<div class="legend">{legend}</div><table class="bars">{"".join(rows)}</table>'


def histogram(lengths: Mapping[str, Any], *, unit: str, kind: str = "") -> str:
    """Bars of a histogram of `Lengths.figures`, with the median marked and the open last bin named."""
    if not lengths.get("rows"):
        return '<p class="none">none</p>'
    edges, counts = lengths["histogram"]["edges"], lengths["histogram"]["counts"]
    width, height, left, right, top, bottom = 420, 190, 44, 12, 18, 34
    plot_w, plot_h, highest = width - left - right, height - top - bottom, max(counts)
    step = plot_w / len(counts)
    grid, bars_ = [], []
    for tick in _ticks(highest):
        y = top + plot_h * (1 - tick / highest)
        grid.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        grid.append(f'<text x="{left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{short(tick)}</text>')
    for i, n in enumerate(counts):
        tall = plot_h * n / highest
        last = i == len(counts) - 1 and lengths["max"] >= edges[-1]
        span = f"{edges[i]} and more" if last else _span(edges[i], edges[i + 1] - 1)
        place = f'x="{left + i * step + 0.6:.1f}" y="{top + plot_h - tall:.1f}"'
        bars_.append(
            f'<rect class="bar {kind}" {place} width="{max(step - 1.2, 0.6):.1f}" height="{tall:.1f}">'
            f"<title>{span} {escape(unit)}: {n:,} rows</title></rect>"
        )
    each = max(1, round(len(counts) / 6))
    labels = [
        f'<text x="{left + i * step:.1f}" y="{height - bottom + 14}" text-anchor="middle">{edges[i]:,}</text>'
        for i in range(0, len(counts), each)
    ]
    middle = left + min((lengths["p50"] + 0.5 - edges[0]) / (edges[1] - edges[0]), len(counts)) * step
    labels.append(f'<line class="median" x1="{middle:.1f}" x2="{middle:.1f}" y1="{top - 4}" y2="{top + plot_h}"/>')
    near_end = middle > width - 110
    side = f'x="{middle - 4:.1f}" text-anchor="end"' if near_end else f'x="{middle + 4:.1f}"'
    labels.append(f'<text class="strong" {side} y="{top - 7}">median {lengths["p50"]:,}</text>')
    labels.append(f'<text x="{left + plot_w / 2}" y="{height - 4}" text-anchor="middle">{escape(unit)}</text>')
    inside = "".join([*grid, *bars_, *labels])
    return (
        f'<svg class="histogram" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(unit)}">{inside}</svg>'
    )


def short(number: float) -> str:
    """A number in little room: 1,234 as 1.2k."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}".removesuffix(".0") + sign
    return f"{number:g}"


def _bar(name: str, parts: Sequence[tuple[str, int]], count: int, whole: int, widest: int) -> str:
    rects, at = [], 0.0
    for kind, part in parts:
        width = 100 * part / widest
        if width:
            rects.append(f'<rect class="bar {kind}" x="{at:.2f}" width="{max(width, 0.4):.2f}" height="10"/>')
        at += width
    label = escape(name) or "<em>empty</em>"
    picture = f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">{"".join(rects)}</svg>'
    return f'<tr><th title="{escape(name)}">{label}</th><td class="pic">{picture}</td>{_numbers(count, whole)}</tr>'


def _numbers(count: int, whole: int) -> str:
    part = 100 * count / whole if whole else 0.0
    shown = f"{part:.1f}" if part >= 0.05 or not count else "&lt;0.1"
    return f'<td class="n">{count:,}</td><td class="n share">{shown}&#8239;%</td>'


def _span(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first}-{last}"


def _ticks(highest: int) -> list[int]:
    """Two to five round numbers up to ``highest``, 0 among them."""
    size = 10 ** (len(str(highest)) - 1)
    step = next(s for s in (size // 5, size // 2, size, 2 * size) if s >= 1 and highest <= 5 * s)
    return list(range(0, highest + 1, step))
