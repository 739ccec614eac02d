"""The report for people: a table for the terminal, and one HTML file that needs nothing else."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from nemo_desta.evaluation.attributes import render_table
from nemo_desta.recipes.report.page import page
from nemo_desta.recipes.report.pieces import card, examples, none, note, table

MODES = ("official", "strict")


def render(report: Mapping[str, Any]) -> str:
    """The terminal's report: the first line, a table of scores, what was left out."""
    lines = [report["first_line"], ""]
    rows = [_row(name, found) for name, found in report["benchmarks"].items()]
    if rows:
        head = ["benchmark", "items", "official", "strict", "95 %", "unparsed", "silence", "shuffled"]
        lines += [render_table(head, rows), ""]
    for name, found in report["benchmarks"].items():
        lines += [f"{name}: left out: {what}" for what in found["left_out"]]
    if "rows" in report:
        lines += [report["rows"]["table"], ""]
    if "text_kept" in report:
        lines.append(report["text_kept"]["sentence"])
    if "judge" in report:
        lines.append("judge: " + ", ".join(f"{key} {value}" for key, value in report["judge"].items()))
    return "\n".join(lines).strip()


def write_report(path: str | Path, report: Mapping[str, Any]) -> Path:
    """Write the HTML file."""
    who = report.get("model") or {"predictions": "given"}
    title = f"Evaluation of {next(iter(who.values()))}"
    body = [f"<h1>{escape(title)}</h1>", f'<p class="sub">{escape(report["first_line"])}</p>']
    body.append(_overview(report["benchmarks"]))
    for name, found in report["benchmarks"].items():
        body.append(f"<h2>{escape(name)}</h2>" + _benchmark(found))
    if "rows" in report:
        body.append("<h2>Rows</h2>" + _rows(report["rows"]))
    if "text_kept" in report:
        body.append(
            "<h2>Text</h2>" + card("Is the text LLM untouched?", note(escape(report["text_kept"]["sentence"])))
        )
    if "judge" in report:
        lines = [[escape(key), escape(str(value))] for key, value in report["judge"].items()]
        body.append("<h2>Judge</h2>" + card("Who judged", table(None, lines)))
    given = {key: value for key, value in report["settings"].items() if value not in (None, {}, [])}
    settings = [[escape(key), escape(str(value))] for key, value in given.items()]
    body.append("<h2>Settings</h2>" + card("As given", table(None, settings)))
    Path(path).write_text(page(title, "".join(body)), encoding="utf-8")
    return Path(path)


def _row(name: str, found: Mapping[str, Any]) -> list[str]:
    strict = found.get("strict", {})
    interval = strict.get("interval")
    controls = {control["name"]: control for control in found.get("controls", ())}
    return [
        name,
        str(found["items"]),
        *(_share(found.get(mode, {}).get("accuracy")) for mode in MODES),
        f"{interval[0]:.2f}-{interval[1]:.2f}" if interval else "",
        str(strict.get("num_unparsed", "")),
        *(_share(controls[kind]["accuracy"]) if kind in controls else "" for kind in ("silence", "shuffled")),
    ]


def _overview(benchmarks: Mapping[str, Mapping[str, Any]]) -> str:
    bars = [
        (f"{name}, {mode}", found[mode]["accuracy"], found[mode]["interval"])
        for name, found in benchmarks.items()
        for mode in MODES
        if "accuracy" in found.get(mode, {})
    ]
    return card("Accuracy, with 95 % bootstrap intervals over items", intervals_plot(bars)) if bars else ""


def _rows(found: Mapping[str, Any]) -> str:
    """Recognition and attributes."""
    pieces = []
    if "recognition" in found:
        rates = found["recognition"]
        lines = [["word error rate", f"{rates['wer']:.3f}"], ["character error rate", f"{rates['cer']:.3f}"]]
        lines += [["rows", str(rates["num_rows"])], ["without an answer", str(rates["unanswered"])]]
        pieces.append(card("Recognition", table(None, lines)))
    attributes = found.get("attributes", {})
    if attributes:
        bars = [(name, one["accuracy"], one["interval"]) for name, one in attributes.items()]
        pieces.append(card("Attributes, with 95 % intervals", intervals_plot(bars)))
    for name, one in attributes.items():
        lines = [["accuracy", f"{one['accuracy']:.3f}"], ["unparsed", f"{one['unparsed']} of {one['num_rows']}"]]
        value, share = one["best_constant"]
        lines += [
            ["best constant answer", f"{share:.3f} ({escape(value)})"],
            ["shuffled answers", f"{one['shuffled']:.3f}"],
        ]
        if one["text_cascade"] is not None:
            lines.append(["text cascade", f"{one['text_cascade']:.3f}"])
        for control in one.get("controls", ()):
            gain = f"{control['difference']:+.3f} [{control['low']:+.3f}, {control['high']:+.3f}]"
            lines.append([f"{control['name']}: right audio gains", gain])
        pieces.append(card(escape(name), table(None, lines)))
    return f'<div class="grid">{"".join(pieces)}</div>'


def _benchmark(found: Mapping[str, Any]) -> str:
    facts = [["prompt and extraction", escape(found["variant"])], ["hash", escape(str(found["hash"]))]]
    facts += [["items", str(found["items"])]]
    for mode in MODES:
        if mode in found:
            figures = found[mode]
            facts.append([f"{mode}: counted", str(figures["num_counted"])])
            facts.append([f"{mode}: unparsed", str(figures["num_unparsed"])])
    pieces = [card("How", table(None, facts))]
    for mode in MODES:
        for by, groups in found.get(mode, {}).get("by", {}).items():
            lines = [
                [escape(str(group)), f"{one['accuracy']:.3f}", str(one["count"])]
                for group, one in groups.items()
                if one.get("count")
            ]
            if lines:
                pieces.append(card(f"{escape(mode)}, by {escape(by)}", table(["", "accuracy", "items"], lines)))
        totals = found.get(mode, {}).get("totals", {})
        lines = [[escape(k), escape(_number(v))] for k, v in totals.items() if isinstance(v, int | float | str)]
        if lines:
            pieces.append(card(f"{escape(mode)}: totals", table(None, lines)))
    controls = [
        [escape(c["name"]), f"{c['accuracy']:.3f}", f"{c['difference']:+.3f}", f"{c['low']:+.3f} to {c['high']:+.3f}"]
        for c in found.get("controls", ())
    ]
    head = ["control", "accuracy", "right audio minus this", "95 %"]
    pieces.append(card("Without the right audio", table(head, controls) if controls else none("No control was run.")))
    if found["left_out"]:
        pieces.append(card("Left out", examples([escape(what) for what in found["left_out"]])))
    quirks = [escape(": ".join(str(part) for part in quirk.values() if part)) for quirk in found["quirks"]]
    if quirks:
        pieces.append(card("What the official scorer does", examples(quirks)))
    return f'<div class="grid">{"".join(pieces)}</div>'


def intervals_plot(bars: list[tuple[str, float, tuple[float, float]]]) -> str:
    """A table with one bar and one interval per score; all from 0 to 1."""
    rows = []
    for name, value, (low, high) in bars:
        picture = (
            '<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
            f'<rect class="bar" x="0" width="{100 * value:.2f}" height="10"/>'
            f'<rect class="warn bar" x="{100 * low:.2f}" y="4" width="{max(0.3, 100 * (high - low)):.2f}" height="2"/>'
            "</svg>"
        )
        rows.append(
            f'<tr><th title="{escape(name)}">{escape(name)}</th><td class="pic">{picture}</td>'
            f'<td class="n">{value:.3f}</td>'
            f'<td class="n share" style="white-space:nowrap;width:92px">{low:.2f}-{high:.2f}</td></tr>'
        )
    return f'<table class="bars">{"".join(rows)}</table>'


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _number(value: float | str) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
