"""Evaluates speech recognition and attributes on the user's own rows, with baselines.

Rows are manifest rows (``id, audio, duration, transcript, attributes``, as the corpora's) or training rows
(``messages`` with audios). Recognition gives word and character error rates. Every attribute gives an accuracy with
three references: the best constant answer, shuffled answers, and the text cascade, in which the same LLM reads the
true description instead of the audio.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemo_desta.config import parse
from nemo_desta.data.audio_io import AudioRoots
from nemo_desta.data.bad_rows import BadRowLog
from nemo_desta.data.row_schema import row_id
from nemo_desta.data.rows import JsonlIndex, load_object
from nemo_desta.errors import ConfigError, RowError, row_guard
from nemo_desta.evaluation.asr import error_rates
from nemo_desta.evaluation.attributes import (
    TaskResult,
    attribute_accuracy,
    parse_value,
    render_results,
    render_table,
    task_result,
)
from nemo_desta.evaluation.controls import Control, run_controls
from nemo_desta.evaluation.files import Item
from nemo_desta.evaluation.settings import ControlSettings, RowsSettings
from nemo_desta.evaluation.sources import Source
from nemo_desta.recipes.describe import describe

NO_CONTROLS = ControlSettings(items=0)


@dataclass(frozen=True)
class Attribute:
    """``field``: path of the true value with dots for nesting; default ``attributes.<name>``. ``values``: the values
    that an answer may name; default all values of the rows. ``aliases``: value -> further wordings."""

    question: str
    field: str | None = None
    values: list[str] | None = None
    aliases: dict[str, Any] | None = None


def evaluate_rows(
    source: Source,
    settings: RowsSettings,
    folder: Path,
    *,
    limit: int | None = None,
    controls: ControlSettings = NO_CONTROLS,
    seed: int = 0,
) -> dict[str, Any]:
    """Prompts the model, parses and scores; returns the report's entry, with the terminal's table under ``table``.

    ``controls``: each attribute is asked again about silence and about other rows' clips.

    A row that cannot be used (no JSON, a clip outside the root or missing) is named in the log and in
    ``bad_rows.jsonl``, and counted in the report.

    Raises:
        ConfigError: no row can be used for a task. FileNotFoundError: no rows. TooManyBadRows: see `BadRowLog`.
    """
    log = BadRowLog(folder / "bad_rows.jsonl")
    rows = _read(settings, limit, log)
    lines: list[str] = []
    found: dict[str, Any] = {"num_rows": len(rows), "bad_rows": dict(log.reasons)}
    if settings.transcribe and (spoken := [row for row in rows if row["transcript"]]):
        answers = _ask(source, spoken, settings.question, folder / "transcribe")
        heard = [answers.get(row["id"], "") for row in spoken]
        rates = error_rates([row["transcript"] for row in spoken], heard)
        found["recognition"] = {"num_rows": len(spoken), "unanswered": len(spoken) - len(answers), **rates}
        cells = [[str(len(spoken)), *(f"{rates[key]:.3f}" for key in ("wer", "cer"))]]
        lines += [render_table(["rows", "WER", "CER"], cells), ""]
    results, cascade, without = [], {}, {}
    for name, values in settings.attributes.items():
        attribute = parse(Attribute, values, where=f"rows.attributes.{name}")
        question = _Question(source, name, attribute, rows, folder)
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
    if not lines:
        raise ConfigError(f"nothing to score in {settings.rows}: no row has a transcript, and 'attributes' is empty")
    return {**found, "table": "\n".join(lines)}


class _Question:
    """One attribute of the rows that hold it: asked about the audio, about the description, and about wrong audio."""

    def __init__(
        self, source: Source, name: str, attribute: Attribute, rows: list[dict[str, Any]], folder: Path
    ) -> None:
        self.source, self.name, self.attribute, self.folder = source, name, attribute, folder
        path = (attribute.field or f"attributes.{name}").split(".")
        known = [(row, str(value)) for row in rows if (value := _look_up(row["row"], path)) not in (None, "")]
        if not known:
            raise ConfigError(f"rows.attributes.{name}: no row has a value under '{'.'.join(path)}'")
        self.values = attribute.values or sorted({value for _, value in known})
        known = [(row, value) for row, value in known if value in self.values]
        self.rows, self.truth = [row for row, _ in known], [value for _, value in known]
        aliases = attribute.aliases or {}
        self.aliases = {value: wordings for value, wordings in aliases.items() if value in self.values}

        self.heard = self._parsed(self.rows, "heard")

    def cascade(self) -> float | None:
        """Accuracy of the same LLM on true descriptions; None if a row has none."""
        if not all(row["description"] for row in self.rows):
            return None
        read = self._parsed([{**row, "audio": None} for row in self.rows], "cascade")
        return attribute_accuracy(read, self.truth).value

    def controls(self, settings: ControlSettings, seed: int) -> list[Control]:
        question = self.attribute.question
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
        answers = _ask(self.source, rows, self.attribute.question, self.folder / self.name / part)
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


def _read(settings: RowsSettings, limit: int | None, log: BadRowLog) -> list[dict[str, Any]]:
    """``id, audio, transcript, description`` and the row itself, for every row with one clip."""
    roots = AudioRoots({"default": settings.audio_root})
    index = JsonlIndex(settings.rows)
    found: list[dict[str, Any]] = []
    for i in range(len(index)):
        name = "?"
        try:
            with row_guard():
                row = load_object(index.line(i))
                name = row_id(row)
                one = _one_clip(row, roots)
        except RowError as error:
            bad = {"id": name, "where": index.where(i), "reason": error.reason, "detail": str(error)}
            log.update(0, [bad])
            if not found and i + 1 == len(index):
                raise ConfigError(f"no row can be used. The last one: {bad['where']}: {bad['detail']}") from error
            continue
        log.update(1, [])
        if one is not None:
            number = f"{name}#{len(found)}" if any(f["id"] == name for f in found[-3:]) else name
            found.append({"id": number, **one, "row": row})
    if not found:
        raise ConfigError(f"no row with one clip in {settings.rows}")
    return found[:limit]


def _one_clip(row: Mapping[str, Any], roots: AudioRoots) -> dict[str, Any] | None:
    """``audio, transcript, description`` of a row; None for a row with no clip or several."""
    audios = [a for m in row.get("messages") or () for a in m.get("audios") or ()]
    if "audio" in row:
        audios = [{"audio": row["audio"], "text": row.get("transcript")}]
    if len(audios) != 1:
        return None
    try:
        description = row.get("seed_description") or describe(row)
    except (ValueError, TypeError, KeyError):  # the row lacks the fields for a description
        description = ""
    return {
        "audio": str(roots.resolve(audios[0]["audio"], dataset=row.get("dataset"))),
        "transcript": (audios[0].get("text") or "").strip(),
        "description": description,
    }


def _look_up(row: Any, path: list[str]) -> Any:
    for key in path:
        row = row.get(key) if isinstance(row, Mapping) else None
    return row


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
