"""The evaluation report: a table for the terminal, and an HTML report in a single file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_desta.evaluation.attributes import render_table
from nemo_desta.evaluation.breakdown import confusion
from nemo_desta.evaluation.cascades import cascade_sentence
from nemo_desta.evaluation.scores import MODES
from nemo_desta.recipes.report.render import render as render_html


def render(report: Mapping[str, Any]) -> str:
    """The report for the terminal: the first line, a table of scores, and the items that were left out."""
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
    scores = [
        (f"{name}, {mode}", found[mode]["accuracy"], found[mode]["interval"])
        for name, found in report["benchmarks"].items()
        for mode in MODES
        if "accuracy" in found.get(mode, {})
    ]
    html = render_html(
        "evaluation/report.html.jinja",
        title=f"Evaluation of {next(iter(who.values()))}",
        report=report,
        modes=MODES,
        scores=scores,
        confusion=confusion,
        cascade_sentence=cascade_sentence,
        settings={key: value for key, value in report["settings"].items() if value not in (None, {}, [])},
    )
    Path(path).write_text(html, encoding="utf-8")
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


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
