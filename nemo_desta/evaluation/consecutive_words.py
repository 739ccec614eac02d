"""DeSTA2.5-Audio's validation metric: whether the label's words occur consecutively in the answer."""

import re

_WORD = re.compile(r"\b\w+\b")


def has_consecutive_words(prediction: str, label: str) -> bool:
    """Whether ``prediction`` contains the words of ``label`` in order, without other words between them.

    Case and punctuation are ignored; a label without words is always contained.
    """
    given, wanted = _words(prediction), _words(label)
    return any(given[i : i + len(wanted)] == wanted for i in range(len(given) - len(wanted) + 1))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
