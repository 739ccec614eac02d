"""Evaluates speech recognition and attributes on the user's own rows, with baselines.

`row_input` reads the rows. Recognition gives word and character error rates. Every attribute gives an accuracy beside
the best constant answer, shuffled answers, and cascades, in which the same LLM reads the true description, or a
transcript, instead of the audio. What cannot be measured is named with its reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_desta.config import nearest
from nemo_desta.data.bad_rows import BadRowLog
from nemo_desta.errors import ConfigError
from nemo_desta.evaluation.attribute_settings import read_attributes
from nemo_desta.evaluation.attributes import render_results
from nemo_desta.evaluation.breakdown import worst_classes
from nemo_desta.evaluation.cascades import cascade_figures, cascade_sentence
from nemo_desta.evaluation.controls import CONTROLS
from nemo_desta.evaluation.question import CONSTANT, Question, figures
from nemo_desta.evaluation.recognition import recognition, recognition_table
from nemo_desta.evaluation.row_input import read_own_rows
from nemo_desta.evaluation.settings import ControlSettings, RowsSettings
from nemo_desta.evaluation.sources import Source
from nemo_desta.evaluation.transcripts import transcripts_of

NO_CONTROLS = ControlSettings(items=0)


@dataclass
class RowTasks:
    """What is asked about which rows. ``left_out``: why something is not measured, as sentences."""

    rows: list[dict[str, Any]]
    spoken: list[dict[str, Any]]
    questions: list[Question]
    bad_rows: dict[str, int]
    left_out: list[str] = field(default_factory=list)


def plan_rows(
    settings: RowsSettings, folder: Path, *, limit: int | None = None, controls: ControlSettings = NO_CONTROLS
) -> RowTasks:
    """Read the rows and check every task; no model is needed.

    A row that cannot be used (no JSON, a clip outside the root or missing) is named in the log and in
    ``bad_rows.jsonl``, and counted in the report.

    Raises:
        ConfigError: wrong settings, or no row can be used for a task. CorpusError: a table or card that cannot be
        used. FileNotFoundError: no rows. TooManyBadRows: see `BadRowLog`.
    """
    settings.check()
    for kind in controls.kinds if controls.items else ():
        if kind not in CONTROLS:
            raise ConfigError(f"unknown control '{kind}'.{nearest(kind, CONTROLS)}")
    log = BadRowLog(folder / "bad_rows.jsonl")
    rows = read_own_rows(settings, log)[:limit]
    questions = [Question(name, one, rows, folder) for name, one in read_attributes(settings.attributes).items()]
    spoken = [row for row in rows if row["transcript"]] if settings.transcribe else []
    if not spoken and not questions:
        where = settings.rows or settings.corpus
        raise ConfigError(f"nothing to score in {where}: no row has a transcript, and 'attributes' is empty")
    tasks = RowTasks(rows, spoken, questions, dict(log.reasons))
    if settings.transcribe and not spoken:
        tasks.left_out.append("recognition: no row has a transcript")
    clips = {row["audio"] for row in rows}
    if controls.items and "shuffled" in controls.kinds and len(clips) < 2:
        tasks.left_out.append("shuffled clip: there is only one clip")
    for question in questions:
        silent = sum(not row["transcript"] for row in question.rows)
        if settings.transcripts == "given" and silent:
            what = f"{silent} of {len(question.rows)} rows have no transcript"
            question.left_out.append(f"transcript cascade of {question.name}: {what}")
    return tasks


def evaluate_rows(
    source: Source,
    settings: RowsSettings,
    folder: Path,
    *,
    limit: int | None = None,
    controls: ControlSettings = NO_CONTROLS,
    seed: int = 0,
    tasks: RowTasks | None = None,
) -> dict[str, Any]:
    """Prompts the model, parses and scores; returns the report's entry, with the terminal's table under ``table``.

    ``controls``: each attribute is asked again about silence and about other rows' clips. ``tasks``: what `plan_rows`
    returned for these settings, so that errors come before the model is loaded. Raises as `plan_rows`.
    """
    tasks = tasks or plan_rows(settings, folder, limit=limit, controls=controls)
    asked = {row["id"]: row for question in tasks.questions for row in question.rows}
    texts = transcripts_of(asked.values(), settings.transcripts, source, folder)
    lines: list[str] = []
    found: dict[str, Any] = {"num_rows": len(tasks.rows), "bad_rows": tasks.bad_rows}
    if tasks.spoken:
        found["recognition"] = recognition(source, tasks.spoken, settings.question, folder / "transcribe")
        lines += [recognition_table(found["recognition"]), ""]
    results = []
    for question in tasks.questions:
        question.ask(source)
        results.append(question.result())
        described = {row["id"]: row["description"] for row in question.rows if row["description"]}
        entry = figures(question, results[-1], question.controls(controls, seed))
        entry |= cascade_figures(results[-1], question.read(described, "cascade"), "text_cascade")
        entry |= cascade_figures(results[-1], question.read(texts, "transcript_cascade"), "transcript_cascade")
        found.setdefault("attributes", {})[question.name] = entry
    if results:
        lines += [render_results(results, _columns(found["attributes"])), ""]
        for name, entry in found["attributes"].items():
            lines += _remarks(name, entry)
    found["left_out"] = [*tasks.left_out, *(what for question in tasks.questions for what in question.left_out)]
    lines += [f"left out: {what}" for what in found["left_out"]]
    return {**found, "table": "\n".join(lines).strip()}


def _columns(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float | str]]:
    """The table's further columns: those that some task has."""
    columns: dict[str, dict[str, float | str]] = {}
    for name, one in entries.items():
        for key in ("text_cascade", "transcript_cascade"):
            if one[key] is not None:
                low, high = one[f"{key}_interval"]
                columns.setdefault(key.replace("_", " "), {})[name] = f"{one[key]:.3f} ({low:.2f}-{high:.2f})"
            if key == "text_cascade" and one["of_the_text_cascade"] is not None:
                columns.setdefault("of the cascade", {})[name] = one["of_the_text_cascade"]
        for control in one["controls"]:
            if (kind := control["name"]) != CONSTANT:
                columns.setdefault(f"{kind} clip" if kind == "shuffled" else kind, {})[name] = control["accuracy"]
    return columns


def _remarks(name: str, entry: Mapping[str, Any]) -> list[str]:
    """What the table does not show: the worst classes, the corpora, and a cascade near chance."""
    lines = []
    if worst := worst_classes(entry["by_class"]):
        lines.append(f"{name}, worst classes: {worst}")
    if entry["by_corpus"]:
        parts = [
            f"{corpus} {one['accuracy']:.3f} ({one['interval'][0]:.2f}-{one['interval'][1]:.2f}, n {one['n']})"
            for corpus, one in entry["by_corpus"].items()
        ]
        lines.append(f"{name}, by corpus: {'; '.join(parts)}")
    if said := cascade_sentence(entry):
        lines.append(f"{name}: {said}")
    return lines
