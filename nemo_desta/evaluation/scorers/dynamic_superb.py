"""Dynamic-SUPERB (phase 2), closed tasks, strict mode only: an answer must name the item's label and no other label
of its task. Predictions are under ``response``.

An item has ``instruction``, ``label`` and, when several tasks are scored together, ``task``. Its options are
``choices`` where given, else all labels of its task in the file. Tasks with open answers (transcripts, numbers,
captions) are left out and named.
"""

from collections.abc import Sequence

from nemo_desta.evaluation.scorers.multiple_choice import choices_of, strict_verdict
from nemo_desta.evaluation.scores import Item, Quirk, Scores, Verdict, accuracy_totals, groups, need

KEY = "response"
FIELDS = ("task",)
MAX_LABELS = 64  # a task with more has open answers
QUIRKS = (
    Quirk(
        "no official mode",
        "the benchmark's authors score with a language model and metrics of each task; their files could not be "
        "read, so nothing here claims to agree with them",
    ),
)


def official(items: Sequence[Item]) -> Scores:
    """Always raises NotImplementedError, with the reason."""
    raise NotImplementedError("dynamic_superb is strict only: its official scoring files could not be read")


def strict(items: Sequence[Item], *, key: str = KEY) -> Scores:
    """Every item of a closed task counts. The model did not see the options in an order, so letters choose nothing."""
    labels: dict[str, dict[str, None]] = {}
    for i, item in enumerate(items):
        labels.setdefault(str(item.get("task")), {})[need(item, "label", i)] = None
    verdicts: list[Verdict] = []
    unparsed, open_tasks = 0, {}
    for i, item in enumerate(items):
        known = labels[str(item.get("task"))]
        options = choices_of(item, i) if "choices" in item else sorted(known)
        if "choices" not in item and len(known) > MAX_LABELS:
            name = str(item.get("task", "the file"))
            open_tasks[name] = open_tasks.get(name, 0) + 1
            verdicts.append(None)
            continue
        right = strict_verdict(item, i, key, options, item["label"], letters=False)
        unparsed += right is None
        verdicts.append(right is True)
    totals = {**accuracy_totals(verdicts), "unparsed": unparsed}
    if open_tasks:
        totals["left_out"] = ", ".join(f"{name} ({n} items with open answers)" for name, n in open_tasks.items())
    return Scores(verdicts, totals, len(items), unparsed, groups(items, verdicts, FIELDS))
