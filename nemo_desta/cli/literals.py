"""Literal text on a command line, quoted for Hydra's grammar of lists, quotes and choices."""

import re
from collections.abc import Sequence

#: Settings whose value is literal text; those whose value is too, unless it is a list or a mapping.
TEXTS = ("prompt", "system", "model", "llm", "output", "source")
PATHS = ("audio", "text", "input")


def quote_literals(words: Sequence[str]) -> list[str]:
    """The words, with literal text in quotes.

    Without quotes Hydra rejects ``prompt=What's that, a dog?`` and takes ``prompt=yes,no`` for a choice.
    """
    overrides = []
    for word in words:
        key, equals, value = word.partition("=")
        key_is_text = key in TEXTS or (key in PATHS and not value.startswith(("[", "{")))
        if equals and key_is_text and value not in ("", "null", "???") and not _is_quoted(value):
            # A backslash is literal, except before a quote.
            escaped = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), value)
            word = f"{key}='{escaped}'"
        overrides.append(word)
    return overrides


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" and value[0] not in value[1:-1]
