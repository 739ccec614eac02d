"""The rule that MMAU and MMAR share: it compares sets of words.

An answer is right when it contains every word of the true option and no word that only other options have.
"""

import re
from collections.abc import Callable, Iterable, Sequence

from nemo_desta.evaluation.scorers.multiple_choice import listed_choices, strict_multiple_choice
from nemo_desta.evaluation.scores import (
    Item,
    ItemError,
    Scores,
    Verdict,
    accuracy_totals,
    groups,
    name_of,
    texts_of,
)

_WORD = re.compile(r"\b\w+\b")

QUIRKS = texts_of(__file__)["quirks"]


def scorer(answer_key: str, fields: Iterable[str]) -> tuple[Callable[..., Scores], Callable[..., Scores]]:
    """``official`` and ``strict`` of a benchmark with this rule; ``answer_key``: default field of the prediction."""

    def official(items: Sequence[Item], *, key: str = answer_key) -> Scores:
        """As the authors' script: accuracy over the items that have ``key``.

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
            choices, answer = listed_choices(item, i)
            verdicts.append(is_right(answer, item[key], choices))
        return Scores(verdicts, accuracy_totals(verdicts), len(items), 0, groups(items, verdicts, fields))

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


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))
