"""The rule that MMAU and MMAR share: it compares sets of words.

An answer is right when it contains every word of the true option and no word that only other options have.
"""

import random
import re
from collections.abc import Callable, Iterable, Sequence

from nemo_desta.evaluation.scorers.multiple_choice import listed_choices, strict_multiple_choice
from nemo_desta.evaluation.scores import (
    Item,
    ItemError,
    Quirk,
    Scores,
    Verdict,
    accuracy_totals,
    groups,
    name_of,
    need,
)

_WORD = re.compile(r"\b\w+\b")

QUIRKS = (
    Quirk(
        "words, not options",
        "compares sets of words, so order and negation are lost and an answer in letters is wrong",
        "on MMAU test-mini the true options as answers give 100 %, in a sentence with quotes 90.7 %, as bare letters "
        "0.2 %; a wrong option counts as right in 9 items of MMAU and 20 of MMAR ('C minor' for 'C# minor')",
    ),
    Quirk(
        "missing answers are not counted",
        "an item without the prediction's key is not counted, and the printed number of missing answers stays 0",
        "the branch that would count them is never reached",
    ),
)


def scorer(answer_key: str, fields: Iterable[str]) -> tuple[Callable[..., Scores], Callable[..., Scores]]:
    """``official`` and ``strict`` of a benchmark with this rule; ``answer_key``: default field of the prediction."""

    def official(items: Sequence[Item], *, rng: random.Random | None = None, key: str = answer_key) -> Scores:
        """As the authors' script, which draws nothing: ``rng`` is not used."""
        return official_scores(items, key, fields)

    def strict(items: Sequence[Item], *, key: str = answer_key) -> Scores:
        """Every item counts, see `strict_multiple_choice`."""
        return strict_multiple_choice(items, key, listed_choices, fields)

    return official, strict


def is_right(answer: str, prediction: str, choices: Iterable[str]) -> bool:
    """The official comparison."""
    given, wanted = _words(prediction), _words(answer)
    if not given or not wanted <= given:
        return False
    return not any(given & (_words(choice) - wanted) for choice in choices)


def official_scores(items: Sequence[Item], key: str, fields: Iterable[str]) -> Scores:
    """Accuracy over the items that have ``key``.

    Raises:
        ItemError: an item without choices or answer, or a null prediction (the official script stops there).
    """
    verdicts: list[Verdict] = []
    for i, item in enumerate(items):
        if key not in item:
            verdicts.append(None)
            continue
        if not isinstance(item[key], str):
            raise ItemError(name_of(item, i), f"'{key}' is no text; leave the key out where there is no answer")
        choices, _ = listed_choices(item, i)
        verdicts.append(is_right(need(item, "answer", i), item[key], choices))
    return Scores(verdicts, accuracy_totals(verdicts), len(items), 0, groups(items, verdicts, fields))


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))
