"""MMSU: spoken language understanding, options A to D; predictions under ``response``.

Two versions of the official script exist and differ; ``commit`` says which one a figure follows.
"""

import random
from collections.abc import Sequence

from nemo_desta.evaluation.scorers.multiple_choice import letter_of, lettered_choices, strict_multiple_choice
from nemo_desta.evaluation.scores import (
    Item,
    ItemError,
    Quirk,
    Scores,
    Verdict,
    accuracy_totals,
    groups,
    name_of,
    tally,
)

KEY = "response"
FIELDS = ("category", "sub-category", "task_name")
QUIRKS = (
    Quirk(
        "first letter, or last but one",
        "the first character decides if it is A to D, else the last but one",
        "'Because ... B' is read as B, 'Certainly B.' as C, 'Answer: B.' as A, 'ZBz' as B",
    ),
    Quirk(
        "unparsed answers are not counted",
        "an answer without such a letter, or null, is not counted; an empty one is wrong",
        "'I think it is b1' leaves the denominator; 'The answer is C' (no full stop) does, too",
    ),
    Quirk(
        "the older script remembers",
        "with commit='old' an empty answer is given the letter of the row before that had one",
        "57.1 % against 71.4 % on the same eight rows; the order of the rows decides",
    ),
)


def official(
    items: Sequence[Item], *, rng: random.Random | None = None, commit: str = "new", key: str = KEY
) -> Scores:
    """As the authors' script of the newer repository (MMSU) or the older one (MMSU_Bench); ``rng`` is not used.

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
