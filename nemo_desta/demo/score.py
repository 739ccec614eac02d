"""Accuracy per task: one plain question per clip, the value parsed from the answer, and baselines.

Baselines: the best constant answer, shuffled audio (both in `TaskResult`), a linear probe on mel statistics (no
language model), and the text cascade (the same LLM reads the true description).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_desta.data.audio_io import load_audio
from nemo_desta.demo.prompts import make_prompt
from nemo_desta.demo.world import gold, parse_answer
from nemo_desta.evaluation.ask_model import ask_about_clips, ask_about_descriptions
from nemo_desta.evaluation.attributes import TaskResult, attribute_accuracy, render_results, task_result
from nemo_desta.evaluation.probe import linear_probe, probe_features
from nemo_desta.models.desta import DestaModel
from nemo_desta.recipes.describe import describe

Rows = Sequence[Mapping[str, Any]]


@dataclass
class Scores:
    """Results by task, further columns of the table, and every answer."""

    results: list[TaskResult] = field(default_factory=list)
    columns: dict[str, dict[str, float]] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)

    def __str__(self) -> str:
        return render_results(self.results, self.columns)

    def accuracy(self, task: str) -> float:
        return next(r.accuracy.value for r in self.results if r.task == task)

    def score(
        self,
        model: DestaModel,
        rows: Rows,
        task: str,
        data_root: str | Path,
        *,
        name: str | None = None,
        batch_size: int = 32,
        progress: bool = True,
    ) -> None:
        """Ask about each row that has ``task`` (first wording, no format); an answer without a value is wrong."""
        name, rows = name or task, known(rows, task)
        truth, questions = [str(gold(row, task)) for row in rows], [make_prompt(task).text] * len(rows)
        answers = ask_about_clips(
            model,
            [Path(data_root) / row["audio"] for row in rows],
            questions,
            lengths=[row["duration"] for row in rows],
            batch_size=batch_size,
            progress=progress,
        )
        found = [parse_answer(task, answer) for answer in answers]
        self.results.append(task_result(name, found, truth))
        for row, wanted, answer, value in zip(rows, truth, answers, found, strict=True):
            self.answers.append({"id": row["id"], "task": name, "truth": wanted, "answer": answer, "parsed": value})

    def cascade(self, model: DestaModel, rows: Rows, task: str, *, name: str | None = None) -> None:
        """Baseline: the same LLM reads the true description instead of hearing the clip."""
        rows = known(rows, task)
        texts = ask_about_descriptions(
            model, [describe(row) for row in rows], [make_prompt(task).text] * len(rows), progress=False
        )
        accuracy = attribute_accuracy([parse_answer(task, t) for t in texts], [str(gold(r, task)) for r in rows])
        self.columns.setdefault("text cascade", {})[name or task] = accuracy.value

    def probe(self, train_rows: Rows, test_rows: Rows, task: str, data_root: str | Path, *, name: str = "") -> None:
        """Baseline without a language model: logistic regression on 480 level-normalised mel statistics."""
        train_rows, test_rows = known(train_rows, task), known(test_rows, task)
        predicted = linear_probe(
            _features(train_rows, data_root), [str(gold(r, task)) for r in train_rows], _features(test_rows, data_root)
        )
        accuracy = attribute_accuracy(predicted, [str(gold(row, task)) for row in test_rows])
        self.columns.setdefault("linear probe", {})[name or task] = accuracy.value


def known(rows: Rows, task: str) -> list[Mapping[str, Any]]:
    """The rows that have a true value of ``task``."""
    return [row for row in rows if gold(row, task) is not None]


def _features(rows: Rows, data_root: str | Path) -> Any:
    import torch

    clips = (
        torch.from_numpy(load_audio(Path(data_root) / row["audio"], duration=row.get("duration"))) for row in rows
    )
    return torch.stack([probe_features(clip, normalize=True) for clip in clips])
