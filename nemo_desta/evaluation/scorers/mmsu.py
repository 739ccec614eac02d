"""MMSU: spoken language understanding, options A to D; predictions under ``response``.

Two versions of the official script exist and differ; ``commit`` says which one a figure follows.
"""

from collections.abc import Sequence

from nemo_desta.evaluation.scorers.multiple_choice import letter_of, lettered_choices, strict_multiple_choice
from nemo_desta.evaluation.scores import (
    Item,
    ItemError,
    Scores,
    Verdict,
    accuracy_totals,
    groups,
    name_of,
    tally,
    texts_of,
)

KEY = "response"
FIELDS = ("category", "sub-category", "task_name")
QUIRKS = texts_of(__file__)["quirks"]


def official(items: Sequence[Item], *, commit: str = "new", key: str = KEY) -> Scores:
    """As the authors' script of the newer repository (MMSU) or the older one (MMSU_Bench).

    Raises:
        ItemError: with commit="old" an empty answer before any that has a letter (the official script stops there).
    """
    if commit not in ("new", "old"):
        raise ValueError(f"commit is '{commit}'; known: new (MMSU), old (MMSU_Bench)")
    verdicts: list[Verdict] = []
    remembered: str | None = None
    unparsed = 0
    for i, item in enumerate(items):
        response = item.get(key, "")
        text, letter = letter_of(response) if isinstance(response, str) else ("null", None)
        if text in ("", "None"):
            letter = remembered if commit == "old" else None
            if commit == "old" and letter is None:
                raise ItemError(name_of(item, i), "is empty before any readable answer; the older script stops there")
        elif letter is None:
            verdicts.append(None)
            unparsed += 1
            continue
        remembered = letter or remembered
        chosen = item.get(f"choice_{letter.lower()}", "") if letter else None
        verdicts.append(chosen is not None and chosen == item.get("answer_gt", ""))
    by = groups(items, verdicts, FIELDS)
    pairs = (f"{item.get('category', '')} / {item.get('sub-category', '')}" for item in items)
    by["category / sub-category"] = tally(zip(pairs, verdicts, strict=True))
    return Scores(verdicts, accuracy_totals(verdicts), len(items), unparsed, by)


def strict(items: Sequence[Item], *, key: str = KEY) -> Scores:
    """Every item counts, see `strict_multiple_choice`."""
    return strict_multiple_choice(items, key, lettered_choices, FIELDS)
