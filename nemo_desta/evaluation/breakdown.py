"""One attribute's answers by true value and by corpus, and answers that name no value or several."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from nemo_desta.evaluation.attributes import attribute_accuracy, best_constant

#: Examples of unparsed answers, and classes in the terminal.
SHOWN = 3
MOST_CONFUSED = 30


class Scored(NamedTuple):
    """``answer``: the text, None if the row was not answered. ``value``: what the answer names, None if it names no
    value or several."""

    id: str
    corpus: str
    truth: str
    answer: str | None
    value: str | None


def corpus_of(row: Mapping[str, Any]) -> str:
    """The name of the corpus that a row says it is from; "" if it does not say."""
    found = (row.get(key) for key in ("source", "dataset", "corpus"))
    return next((name for name in found if isinstance(name, str) and name), "")


def by_class(scored: Sequence[Scored]) -> dict[str, dict[str, Any]]:
    """True value -> figures; ``answers``: named value -> count, the most frequent first; ``mistaken_for``: the most
    frequent wrong value and its count, None if no answer named a wrong one."""
    found = {}
    for truth, some in _groups(scored, lambda one: one.truth).items():
        answers = Counter(one.value for one in some if one.value is not None)
        wrong = [pair for pair in _ordered(answers) if pair[0] != truth]
        mistaken = wrong[0] if wrong else None
        found[truth] = {**_figures(some), "answers": dict(_ordered(answers)), "mistaken_for": mistaken}
    return found


def by_corpus(scored: Sequence[Scored]) -> dict[str, dict[str, Any]]:
    """Corpus -> figures, with the corpus's own best constant answer; empty if all rows are from one corpus."""
    groups = _groups(scored, lambda one: one.corpus)
    if len(groups) < 2:
        return {}
    return {
        name or "unnamed": {**_figures(some), "best_constant": best_constant([one.truth for one in some])}
        for name, some in groups.items()
    }


def unparsed_examples(scored: Iterable[Scored]) -> list[dict[str, Any]]:
    """Up to `SHOWN` answers without a value, each with another text."""
    texts: dict[str | None, Scored] = {}
    for one in scored:
        if one.value is None and len(texts) < SHOWN:
            texts.setdefault(one.answer, one)
    return [{"id": one.id, "true": one.truth, "answer": one.answer} for one in texts.values()]


def confusion(classes: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]] | None:
    """The head and lines of a table of true values against named ones; None with more than `MOST_CONFUSED` values."""
    named = {value for one in classes.values() for value in one["answers"]}
    values = sorted({*classes, *named})
    if len(values) > MOST_CONFUSED:
        return None
    lines = [
        [truth, *(str(one["answers"].get(value, "")) for value in values), str(one["unparsed"] or "")]
        for truth, one in classes.items()
    ]
    return ["true value", *values, "unparsed"], lines


def worst_classes(classes: Mapping[str, Mapping[str, Any]]) -> str:
    """The worst `SHOWN` classes for the terminal, such as ``rain 2 of 10 (as sea 5)``; "" if all are right."""
    wrong = [(name, one) for name, one in classes.items() if one["right"] < one["n"]]
    wrong.sort(key=lambda pair: (pair[1]["accuracy"], -pair[1]["n"], pair[0]))
    parts = []
    for name, one in wrong[:SHOWN]:
        mistakes = [f"as {one['mistaken_for'][0]} {one['mistaken_for'][1]}"] if one["mistaken_for"] else []
        mistakes += [f"unparsed {one['unparsed']}"] if one["unparsed"] else []
        parts.append(f"{name} {one['right']} of {one['n']} ({', '.join(mistakes)})")
    return "; ".join(parts)


def _groups(scored: Iterable[Scored], key: Callable[[Scored], str]) -> dict[str, list[Scored]]:
    found: dict[str, list[Scored]] = {}
    for one in scored:
        found.setdefault(key(one), []).append(one)
    return {name: found[name] for name in sorted(found)}


def _figures(some: Sequence[Scored]) -> dict[str, Any]:
    accuracy = attribute_accuracy([one.value for one in some], [one.truth for one in some])
    return {
        "n": accuracy.total,
        "right": accuracy.correct,
        "unparsed": accuracy.unparsed,
        "accuracy": accuracy.value,
        "interval": accuracy.interval,
    }


def _ordered(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
