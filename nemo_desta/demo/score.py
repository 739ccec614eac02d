"""One plain question per clip and task, the value parsed from the answer, beside what the number has to beat.

Bounds in one table: the best constant answer, shuffled audio (answers held against other clips' truth), a linear probe
on mel statistics (no language model at all), and the text cascade (the same LLM reads the true description).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_desta.demo.prompts import make_prompt
from nemo_desta.demo.world import gold, parse_answer
from nemo_desta.evaluation.ask import ask_about_clips, ask_about_descriptions
from nemo_desta.evaluation.attributes import best_constant, shuffled_control
from nemo_desta.models.desta import DestaModel
from nemo_desta.recipes.describe import describe


@dataclass(frozen=True)
class Score:
    """Accuracies of one task on one set of clips; None where a bound was not asked for."""

    name: str
    num_clips: int
    accuracy: float
    constant: float
    shuffled_mean: float
    shuffled_max: float
    unparsed: int
    cascade: float | None = None
    probe: float | None = None


def score_task(
    model: DestaModel,
    rows: Sequence[Mapping[str, Any]],
    task: str,
    data_root: str | Path,
    *,
    name: str | None = None,
    cascade: bool = True,
    probe: float | None = None,
    batch_size: int = 32,
) -> tuple[Score, list[dict[str, Any]]]:
    """Score the rows that hold ``task``; also the answers, one mapping per row.

    The question is the task's first wording, without any format; what cannot be parsed counts as wrong.
    """
    rows = [row for row in rows if gold(row, task) is not None]
    truth = [str(gold(row, task)) for row in rows]
    questions = [make_prompt(task).text] * len(rows)
    clips = [Path(data_root) / row["audio"] for row in rows]
    lengths = [row["duration"] for row in rows]
    answers = ask_about_clips(model, clips, questions, lengths=lengths, batch_size=batch_size)
    found = [parse_answer(task, answer) for answer in answers]
    read = None
    if cascade:
        texts = ask_about_descriptions(model, [describe(row) for row in rows], questions)
        read = _share(parse_answer(task, text) == t for text, t in zip(texts, truth, strict=True))
    shuffled = shuffled_control(found, truth)
    score = Score(
        name=name or task,
        num_clips=len(rows),
        accuracy=_share(f == t for f, t in zip(found, truth, strict=True)),
        constant=best_constant(truth)[1],
        shuffled_mean=shuffled.mean,
        shuffled_max=shuffled.max,
        unparsed=sum(f is None for f in found),
        cascade=read,
        probe=probe,
    )
    details = [
        {"id": row["id"], "task": task, "truth": t, "answer": answer, "parsed": f}
        for row, t, answer, f in zip(rows, truth, answers, found, strict=True)
    ]
    return score, details


def table(scores: Sequence[Score]) -> str:
    """The scores as a Markdown table."""
    head = ["task", "clips", "accuracy", "best constant", "shuffled audio mean (max)", "linear probe", "text cascade"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for s in scores:
        cells = [
            s.name,
            str(s.num_clips),
            f"**{s.accuracy:.3f}**",
            f"{s.constant:.3f}",
            f"{s.shuffled_mean:.3f} ({s.shuffled_max:.3f})",
            _cell(s.probe),
            _cell(s.cascade),
        ]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _share(verdicts: Any) -> float:
    verdicts = list(verdicts)
    return sum(verdicts) / max(1, len(verdicts))
