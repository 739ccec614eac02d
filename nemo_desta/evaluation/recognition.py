"""Scores speech recognition on the user's rows, beside the same LLM that reads the true description."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_desta.evaluation.asr import error_rates
from nemo_desta.evaluation.attributes import render_table
from nemo_desta.evaluation.breakdown import corpus_of
from nemo_desta.evaluation.question import ask_rows
from nemo_desta.evaluation.sources import Source

_QUOTATION_MARKS = re.compile(r'["“”„«»]')


def recognition(source: Source, rows: Sequence[Mapping[str, Any]], question: str, folder: Path) -> dict[str, Any]:
    """Error rates of all rows and, if there are several, of each corpus.

    ``quoted`` has the rates of what the answers quote, since an LLM likes to answer 'The speaker says, "..."'; None if
    no answer quotes. ``text_cascade``: the rates of the same LLM that reads each row's true description; None if a row
    has none.
    """
    answers = ask_rows(source, [(row["id"], question, row["audio"]) for row in rows], folder)
    names = sorted({corpus_of(row["row"]) for row in rows})
    parts = {name or "unnamed": [row for row in rows if corpus_of(row["row"]) == name] for name in names}
    found = {
        **_rates(rows, answers),
        "by_corpus": {name: _rates(some, answers) for name, some in parts.items()} if len(parts) > 1 else {},
        "text_cascade": None,
    }
    if all(row["description"] for row in rows):
        texts = [(row["id"], f"{row['description']}\n{question}", None) for row in rows]
        found["text_cascade"] = _rates(rows, ask_rows(source, texts, folder / "cascade"))
    return found


def recognition_table(found: Mapping[str, Any]) -> str:
    """The terminal's table of `recognition`."""
    lines = {"all": found, **found["by_corpus"]}
    if found["text_cascade"]:
        lines["text cascade"] = found["text_cascade"]
    cells = [
        [name, str(one["num_rows"]), f"{one['wer']:.3f}", f"{one['cer']:.3f}"]
        + [f"{one['quoted']['wer']:.3f}" if one["quoted"] else "-"]
        for name, one in lines.items()
    ]
    return render_table(["recognition", "rows", "WER", "CER", "WER, quoted part"], cells)


def quoted_part(answer: str) -> str | None:
    """What an answer quotes: the words between its only pair of quotation marks, or after its only mark where the
    answer was cut. None if there are no marks or several pairs."""
    pieces = _QUOTATION_MARKS.split(answer)
    return pieces[1] if len(pieces) in (2, 3) else None


def _rates(rows: Sequence[Mapping[str, Any]], answers: Mapping[str, str]) -> dict[str, Any]:
    said = [row["transcript"] for row in rows]
    heard = [answers.get(row["id"], "") for row in rows]
    quotes = [quoted_part(answer) for answer in heard]
    quoted = None
    if any(quotes):
        parts = [answer if part is None else part for part, answer in zip(quotes, heard, strict=True)]
        quoted = {"answers": sum(part is not None for part in quotes), **error_rates(said, parts)}
    unanswered = sum(row["id"] not in answers for row in rows)
    return {"num_rows": len(rows), "unanswered": unanswered, **error_rates(said, heard), "quoted": quoted}
