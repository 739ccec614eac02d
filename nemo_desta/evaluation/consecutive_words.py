"""DeSTA2.5-Audio's validation metric: are the label's words in the answer, one right after the other?"""

import re

_WORD = re.compile(r"\b\w+\b")


def has_consecutive_words(prediction: str, label: str) -> bool:
    """Whether the words of ``label`` stand in ``prediction`` in order and without another between them.

    Case and punctuation do not matter; a label without words is always there.
    """
    given, wanted = _words(prediction), _words(label)
    return any(given[i : i + len(wanted)] == wanted for i in range(len(given) - len(wanted) + 1))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
