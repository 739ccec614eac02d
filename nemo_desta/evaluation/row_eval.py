"""Evaluates speech recognition and attributes on the user's own rows, with baselines.

`row_input` reads the rows. Recognition gives word and character error rates. Every attribute gives an accuracy with
three references: the best constant answer, shuffled answers, and the text cascade, in which the same LLM reads the
true description instead of the audio. What cannot be measured is named with its reason.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nemo_desta.config import nearest, parse
from nemo_desta.data.bad_rows import BadRowLog
from nemo_desta.errors import ConfigError
from nemo_desta.evaluation.asr import error_rates
from nemo_desta.evaluation.attributes import (
    TaskResult,
    attribute_accuracy,
    parse_value,
    render_results,
    render_table,
    task_result,
)
from nemo_desta.evaluation.controls import CONTROLS, Control, run_controls
from nemo_desta.evaluation.files import Item
from nemo_desta.evaluation.row_input import read_own_rows, value_of
from nemo_desta.evaluation.settings import ControlSettings, RowsSettings
from nemo_desta.evaluation.sources import Source

#: A question that is made from the values lists at most so many.
MOST_VALUES = 30
NO_CONTROLS = ControlSettings(items=0)


@dataclass(frozen=True)
class Attribute:
    """``question``: null makes one from the values. ``field``: path of the true value with dots for nesting; null: see
    `value_of`. ``values``: the values that an answer may name; default all values of the rows. ``aliases``: value ->
    further wordings."""

    question: str | None = None
    field: str | None = None
    values: list[str] | None = None
    aliases: dict[str, Any] | None = None


@dataclass
class RowTasks:
    """What is asked about which rows. ``left_out``: why something is not measured, as sentences."""

    rows: list[dict[str, Any]]
    spoken: list[dict[str, Any]]
    questions: list["_Question"]
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
    wanted = settings.attributes if isinstance(settings.attributes, dict) else dict.fromkeys(settings.attributes)
    questions = [
        _Question(name, parse(Attribute, values, where=f"rows.attributes.{name}"), rows, folder)
        for name, values in wanted.items()
    ]
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
        tasks.left_out += question.left_out
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
    lines: list[str] = []
    found: dict[str, Any] = {"num_rows": len(tasks.rows), "bad_rows": tasks.bad_rows, "left_out": tasks.left_out}
    if spoken := tasks.spoken:
        answers = _ask(source, spoken, settings.question, folder / "transcribe")
        heard = [answers.get(row["id"], "") for row in spoken]
        rates = error_rates([row["transcript"] for row in spoken], heard)
        found["recognition"] = {"num_rows": len(spoken), "unanswered": len(spoken) - len(answers), **rates}
        cells = [[str(len(spoken)), *(f"{rates[key]:.3f}" for key in ("wer", "cer"))]]
        lines += [render_table(["rows", "WER", "CER"], cells), ""]
    results, cascade, without = [], {}, {}
    for question in tasks.questions:
        name = question.name
        question.ask(source)
        results.append(task_result(name, question.heard, question.truth))
        if (bound := question.cascade()) is not None:
            cascade[name] = bound
        if controls.items:
            without[name] = question.controls(controls, seed)
    if results:
        extra = {"text cascade": cascade} if cascade else {}
        for kind in controls.kinds if controls.items else ():
            column = {name: c.accuracy for name, found_ in without.items() for c in found_ if c.name == kind}
            extra[f"{kind} clip" if kind == "shuffled" else kind] = column
        lines.append(render_results(results, extra))
        found["attributes"] = {r.task: _figures(r, cascade.get(r.task)) for r in results}
        for name, some in without.items():
            found["attributes"][name]["controls"] = [asdict(control) for control in some]
    lines += [f"left out: {what}" for what in tasks.left_out]
    return {**found, "table": "\n".join(lines)}


class _Question:
    """One attribute of the rows that hold it: asked about the audio, about the description, and about wrong audio."""

    def __init__(self, name: str, attribute: Attribute, rows: list[dict[str, Any]], folder: Path) -> None:
        self.name, self.folder = name, folder
        found = [(row, value_of(row, name, attribute.field)) for row in rows]
        known = [(row, value) for row, value in found if value is not None]
        if not known:
            where = attribute.field or f"attributes.{name}"
            elsewhere = "" if attribute.field else f", under '{name}', or in its seed description"
            raise ConfigError(f"rows.attributes.{name}: no row has a value under '{where}'{elsewhere}")
        self.values = attribute.values or sorted({value for _, value in known})
        asked = [(row, value) for row, value in known if value in self.values]
        if not asked:
            others = ", ".join(sorted({value for _, value in known})[:10])
            raise ConfigError(
                f"rows.attributes.{name}.values: no row has one of {', '.join(self.values)}; has: {others}"
            )
        self.rows, self.truth = [row for row, _ in asked], [value for _, value in asked]
        aliases = attribute.aliases or {}
        self.aliases = {value: wordings for value, wordings in aliases.items() if value in self.values}
        parse_value("", self.values, self.aliases)  # values or aliases that contradict fail before the first question
        if attribute.question is None and len(self.values) > MOST_VALUES:
            raise ConfigError(f"rows.attributes.{name} has {len(self.values)} values: give 'question' and 'values'")
        words = name.replace("_", " ")
        made = f"What is the {words} in this recording? Answer with one of these: {', '.join(self.values)}."
        self.question = attribute.question or made
        self.left_out = []
        if less := len(found) - len(known):
            self.left_out.append(f"{name}: {less} of {len(found)} rows have no value")
        if less := len(known) - len(asked):
            self.left_out.append(f"{name}: {less} of {len(found)} rows have a value that is not among 'values'")
        if bare := [row["id"] for row in self.rows if not row["description"]]:
            self.left_out.append(
                f"text cascade of {name}: {len(bare)} of {len(self.rows)} rows have no description, such as {bare[0]} "
                "(a description needs domain, duration and attributes, or a seed_description)"
            )

    def ask(self, source: Source) -> None:
        """Ask about every clip."""
        self.source = source
        self.heard = self._parsed(self.rows, "heard")

    def cascade(self) -> float | None:
        """Accuracy of the same LLM on true descriptions; None if a row has none."""
        if not all(row["description"] for row in self.rows):
            return None
        read = self._parsed([{**row, "audio": None} for row in self.rows], "cascade")
        return attribute_accuracy(read, self.truth).value

    def controls(self, settings: ControlSettings, seed: int) -> list[Control]:
        question = self.question
        clips = [
            Item(row["id"], Path(row["audio"]), question, (), value, {})
            for row, value in zip(self.rows, self.truth, strict=True)
        ]
        said = {clip.id: value == clip.answer for clip, value in zip(clips, self.heard, strict=True)}

        def ask(kind: str, changed: Sequence[Item]) -> list[bool]:
            rows = [{"id": clip.id, "audio": str(clip.audio), "description": ""} for clip in changed]
            found = self._parsed(rows, f"control_{kind}")
            return [value == clip.answer for value, clip in zip(found, changed, strict=True)]

        return run_controls(
            clips, settings, self.folder / "silence", lambda some: [said[clip.id] for clip in some], ask, seed=seed
        )

    def _parsed(self, rows: Sequence[Mapping[str, Any]], part: str) -> list[str | None]:
        answers = _ask(self.source, rows, self.question, self.folder / self.name / part)
        return [parse_value(answers.get(row["id"], ""), self.values, self.aliases) for row in rows]


def _ask(source: Source, rows: Iterable[Mapping[str, Any]], question: str, folder: Path) -> dict[str, str]:
    """Answers by id: about the clip, or about the description if the row's audio is None."""
    asked = []
    for row in rows:
        message: dict[str, Any] = {"role": "user", "content": f"{row['description']}\n{question}"}
        if row["audio"] is not None:
            message = {"role": "user", "content": f"{source.tag}\n{question}", "audios": [{"audio": row["audio"]}]}
        asked.append({"id": row["id"], "messages": [message]})
    return source.ask(asked, folder)


def _figures(result: TaskResult, cascade: float | None) -> dict[str, Any]:
    return {
        "accuracy": result.accuracy.value,
        "interval": result.accuracy.interval,
        "num_rows": result.accuracy.total,
        "unparsed": result.accuracy.unparsed,
        "best_constant": result.constant,
        "shuffled": result.shuffled.mean,
        "text_cascade": cascade,
    }
