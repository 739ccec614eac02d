"""Dynamic-SUPERB (phase 2), strict only: closed tasks, whose answer must name the item's label and no other label of
its task; predictions under ``response``.

An item has ``instruction``, ``label`` and, when several tasks are scored together, ``task``. Its options are
``choices`` where given, else all labels of its task in the file. Tasks with open answers (transcripts, numbers,
captions) are left out and named.
"""

import random
from collections.abc import Sequence

from nemo_desta.evaluation.choices import choose
from nemo_desta.evaluation.scorers.multiple_choice import true_option
from nemo_desta.evaluation.scores import (
    Item,
    ItemError,
    Quirk,
    Scores,
    Verdict,
    accuracy_totals,
    answer_of,
    groups,
    name_of,
    need,
)

KEY = "response"
FIELDS = ("task",)
MAX_LABELS = 64
QUIRKS = (
    Quirk(
        "no official mode",
        "the benchmark's authors score with a language model and metrics of each task; their files could not be "
        "read, so nothing here claims to agree with them",
    ),
)


def official(items: Sequence[Item], *, rng: random.Random | None = None) -> Scores:
    """Not there.

    Raises:
        NotImplementedError: always, with the reason.
    """
    raise NotImplementedError("dynamic_superb is strict only: its official scoring files could not be read")


def strict(items: Sequence[Item], *, key: str = KEY) -> Scores:
    """Every item of a closed task counts. Options have no order that the model saw, so letters choose nothing."""
    labels: dict[str, dict[str, None]] = {}
    for i, item in enumerate(items):
        labels.setdefault(str(item.get("task")), {})[need(item, "label", i)] = None
    verdicts: list[Verdict] = []
    unparsed, open_tasks = 0, {}
    for i, item in enumerate(items):
        options = _options(item, i, labels[str(item.get("task"))])
        if options is None:
            name = str(item.get("task", "the file"))
            open_tasks[name] = open_tasks.get(name, 0) + 1
            verdicts.append(None)
            continue
        gold = true_option(options, item["label"], name_of(item, i))
        answer = answer_of(item, key, i)
        chosen = choose(answer, options, letters=False) if answer is not None else None
        unparsed += chosen is None
        verdicts.append(chosen is not None and options[chosen] == options[gold])
    totals = {**accuracy_totals(verdicts), "unparsed": unparsed}
    if open_tasks:
        totals["left_out"] = ", ".join(f"{name} ({n} items with open answers)" for name, n in open_tasks.items())
    return Scores(verdicts, totals, len(items), unparsed, groups(items, verdicts, FIELDS))


def _options(item: Item, position: int, labels: dict[str, None]) -> list[str] | None:
    """The item's options; None when its task is open: more labels than a closed one has."""
    if "choices" in item:
        choices = need(item, "choices", position, list)
        if not choices or not all(isinstance(choice, str) for choice in choices):
            raise ItemError(name_of(item, position), "'choices' must be a list of one text or more")
        return choices
    return sorted(labels) if len(labels) <= MAX_LABELS else None
