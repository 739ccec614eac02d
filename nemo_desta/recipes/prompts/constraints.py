"""Output formats that a prompt can ask for, and checks whether an answer follows one.

The checks are exact where the format is exact (JSON, case, a fixed start). Words, sentences and bullets are counted
by the rules stated at each function. Answers are passed without their thoughts.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from nemo_desta.registry import Registry


class Constraint(NamedTuple):
    """``name``: one of `CONSTRAINTS`; ``args``: its numbers or phrases, as the check of that name takes them."""

    name: str
    args: tuple[str | int, ...] = ()


def obeys(constraint: Constraint, answer: str) -> bool | None:
    """Whether ``answer`` keeps to the format; None where no exact check exists (the language of an answer).

    Raises ``ValueError`` for a constraint of unknown name or with arguments that its check does not take.
    """
    if constraint.name not in CONSTRAINTS:
        raise ValueError(f"no constraint {constraint.name!r}; there are {', '.join(CONSTRAINTS)}")
    check = CONSTRAINTS[constraint.name]
    try:
        return None if check is None else check(answer.strip(), *constraint.args)
    except TypeError as error:
        raise ValueError(f"constraint {constraint.name!r} cannot take {list(constraint.args)!r}: {error}") from None


def parse_constraint(entry: Any, at: str) -> Constraint:
    """From ``{"name": ..., "args": [...]}``, or ``[name, [args]]`` as JSON writes it; ``at``: where, for errors."""
    if isinstance(entry, (list, tuple)) and len(entry) == 2:
        entry = {"name": entry[0], "args": entry[1]}
    if not isinstance(entry, Mapping) or "name" not in entry or not set(entry) <= {"name", "args"}:
        raise ValueError(f"{at}: a constraint is {{name: ..., args: [...]}}, found {entry!r}")
    constraint = Constraint(entry["name"], tuple(entry.get("args") or ()))
    try:
        obeys(constraint, "")
    except ValueError as error:
        raise ValueError(f"{at}: {error}") from None
    return constraint


def _words(answer: str) -> list[str]:
    """Runs of characters between blanks that hold a letter or digit."""
    return [word for word in answer.split() if any(c.isalnum() for c in word)]


def _lines(answer: str) -> list[str]:
    return [line.strip() for line in answer.splitlines() if line.strip()]


def _json(answer: str) -> Any:
    """The value of the JSON, with or without a code fence around it; None for invalid JSON."""
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*)\n\s*```", answer, flags=re.DOTALL | re.IGNORECASE)
    try:
        return json.loads(fenced.group(1) if fenced else answer)
    except (ValueError, RecursionError):
        return None


def _json_keys(answer: str, *keys: str) -> bool:
    value = _json(answer)
    return isinstance(value, dict) and (set(value) == set(keys) or not keys)


def _json_list(answer: str) -> bool:
    value = _json(answer)
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _sentences(answer: str, count: int) -> bool:
    """A sentence ends with . ! ? or an ellipsis, closing quotes and brackets, then a blank or the end."""
    ends = re.findall(r"[.!?\u2026]+[\"'\u201d\u2019)\]*]*(?=\s|$)", answer)
    return len(ends) == count and re.search(r"[.!?\u2026]+[\"'\u201d\u2019)\]*]*$", answer) is not None


def _bullets(answer: str, count: int | None = None) -> bool:
    lines = _lines(answer)
    fits = bool(lines) and all(re.match(r"[-*\u2022]\s+\S", line) for line in lines)
    return fits and (count is None or len(lines) == count)


def _numbered(answer: str, count: int) -> bool:
    numbers = [re.match(r"(\d+)[.)]\s+\S", line) for line in _lines(answer)]
    return [match and int(match.group(1)) for match in numbers] == list(range(1, count + 1))


def _starts_with(answer: str, *phrases: str) -> bool:
    """Starts with one of the phrases as whole words; case is ignored."""
    return any(re.match(re.escape(phrase) + r"(?!\w)", answer, flags=re.IGNORECASE) for phrase in phrases)


def _quoted(answer: str) -> bool:
    pairs = {'"': '"', "\u201c": "\u201d"}
    return len(answer) > 2 and pairs.get(answer[0]) == answer[-1] and not set(answer[1:-1]) & set('"\u201c\u201d')


def _holds(answer: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", answer, flags=re.IGNORECASE) is not None


_SHIPPED: dict[str, Callable[..., bool] | None] = {
    "json_keys": _json_keys,  # an object with these keys and no others; any object without args
    "json_list": _json_list,  # a list of strings
    "lower_case": lambda a: bool(a) and a == a.lower(),
    "upper_case": lambda a: bool(a) and a == a.upper(),
    "max_words": lambda a, n: 0 < len(_words(a)) <= n,
    "min_words": lambda a, n: len(_words(a)) >= n,
    "word_range": lambda a, low, high: low <= len(_words(a)) <= high,
    "exact_words": lambda a, n: len(_words(a)) == n,
    "one_word": lambda a: len(a.split()) == len(_words(a)) == 1,
    "sentences": _sentences,
    "paragraphs": lambda a, n: len([p for p in re.split(r"\n\s*\n", a) if p.strip()]) == n,
    "bullets": _bullets,  # nothing but bullets; so many, if a number is given
    "numbered": _numbered,  # nothing but lines "1. ..." to "n. ..."
    "starts_with": _starts_with,  # one of the phrases
    "ends_with": lambda a, phrase: a.endswith(phrase),
    "no_commas": lambda a: bool(a) and "," not in a,
    "no_digits": lambda a: bool(a) and not any(c.isdigit() for c in a),
    "quoted": _quoted,
    "holds": _holds,  # the word occurs
    "lacks": lambda a, word: bool(a) and not _holds(a, word),
    "titled": lambda a: re.match(r"<<[^<>\n]+>>", a) is not None,
    "letter": lambda a: re.fullmatch(r"\(?[A-Z][.)]?", a) is not None,
    "one_of": lambda a, *options: a.rstrip(".").casefold() in [option.casefold() for option in options],
    "question": lambda a: a.endswith("?"),
    "language": None,
}
#: name -> check of (stripped answer, *args); None: a known constraint without an exact check. Prompt files are data:
#: they import no dotted names.
CONSTRAINTS = Registry("prompt format", "nemo_desta.prompt_formats", _SHIPPED, dotted=False)
