"""Attribute tasks: one closed question per clip; the value is parsed from the answer and compared with the true one.

An answer is right only when it names exactly the right value. An answer that names no value or several is wrong. Each
accuracy is reported with two baselines that need no audio (the best constant answer on the same test set, and the same
answers assigned to other clips) and with a confidence interval.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import numpy as np

from nemo_desta.core.think_tags import without_thought
from nemo_desta.evaluation.intervals import wilson_interval

PERMUTATIONS = 200

_NOT = r"(?:\b(?:not|no|never|without|rather than|instead of)\b|n't\b)"
#: A value directly after one of them (and perhaps an article) is ruled out, not named: "female, not male".
_NEGATION = re.compile(rf"{_NOT}(?: (?:a|an|the|any))? $")
_NEGATIONS = re.compile(rf"{_NOT}|\bnor\b")
#: Other words that may stand between the words of a value.
_BETWEEN = 2


def parse_value(answer: str, values: Iterable[str], aliases: Mapping[str, Iterable[str]] | None = None) -> str | None:
    """The one of ``values`` that ``answer`` names; None when it names none or several.

    ``aliases``: value -> further wordings of it. Only whole words match, in any case; hyphens and underscores count as
    spaces. Where names overlap the longest wins ("bass clarinet" is no "clarinet"). A directly negated value does not
    count as named. If none is named so, the words of a value in another order, close together in a sentence without a
    negation, name it ("a crowing rooster", "the dog is barking"). A think block is removed; one that never closes
    leaves no answer.
    """
    values = list(values)
    pairs = [(value, value) for value in values]
    pairs += [(wording, value) for value, wordings in (aliases or {}).items() for wording in wordings]
    names: dict[str, str] = {}
    for wording, value in pairs:
        if value not in values:
            raise ValueError(f"aliases are given for {value!r}, which is none of the values {', '.join(values)}")
        if names.setdefault(plain_words(wording), value) != value:
            raise ValueError(f"{wording!r} stands for both {names[plain_words(wording)]!r} and {value!r}")
    text = plain_words(without_thought(answer))
    ordered = sorted(names, key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, ordered))})(?!\w)")
    named = {names[match[0]] for match in pattern.finditer(text) if not _NEGATION.search(text[: match.start()])}
    named = named or {value for value in values if _has_its_words(text, _words(plain_words(value)))}
    return named.pop() if len(named) == 1 else None


def _has_its_words(text: str, words: Sequence[str]) -> bool:
    """Whether a sentence of ``text`` has the two or more ``words`` of a value close together."""
    width = len(words) + _BETWEEN
    for sentence in re.split(r"[.!?;]", text) if len(words) > 1 else ():
        if not _NEGATIONS.search(sentence):
            said = _words(sentence)
            if any(set(words) <= set(said[first : first + width]) for first in range(len(said) - len(words) + 1)):
                return True
    return False


def _words(text: str) -> list[str]:
    return [word.removesuffix("'s") for word in re.findall(r"[\w']+", text)]


@dataclass(frozen=True)
class Accuracy:
    """``correct`` of ``total`` answers; ``unparsed`` of the wrong ones named no value or several."""

    correct: int
    total: int
    unparsed: int = 0

    @property
    def value(self) -> float:
        return self.correct / self.total

    @property
    def standard_error(self) -> float:
        """Binomial. It treats clips as independent, which clips of one speaker are not."""
        return sqrt(self.value * (1 - self.value) / self.total)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        return wilson_interval(self.correct, self.total)


def attribute_accuracy(predictions: Sequence[str | None], references: Sequence[str]) -> Accuracy:
    """Compares parsed values with true ones, clip by clip; a prediction of None is wrong."""
    _check(predictions, references)
    correct = sum(p == r for p, r in zip(predictions, references, strict=True))
    return Accuracy(correct, len(references), sum(p is None for p in predictions))


def best_constant(references: Sequence[str]) -> tuple[str, float]:
    """The single answer with the highest accuracy on these clips: (value, accuracy)."""
    _check(references, references)
    counts = Counter(references)
    value = min(counts, key=lambda name: (-counts[name], name))
    return value, counts[value] / len(references)


class ShuffledControl(NamedTuple):
    """Accuracy of the same answers assigned to other clips: ``mean`` and ``max`` over the permutations."""

    mean: float
    max: float


def shuffled_control(answers: Sequence[str | None], references: Sequence[str], *, seed: int = 0) -> ShuffledControl:
    """Accuracy of the answers when their clips are permuted, `PERMUTATIONS` times.

    With one fixed question this equals asking about the wrong clips, because answers depend on the clips alone.
    """
    _check(answers, references)
    ids = {value: i for i, value in enumerate(dict.fromkeys(references))}
    given = np.array([ids.get(answer, -1) for answer in answers])
    true = np.array([ids[reference] for reference in references])
    rng = np.random.default_rng(seed)
    scores = [float((rng.permutation(given) == true).mean()) for _ in range(PERMUTATIONS)]
    return ShuffledControl(float(np.mean(scores)), max(scores))


@dataclass(frozen=True)
class TaskResult:
    """All figures of one task; ``constant`` and ``shuffled`` are the baselines of ``accuracy``."""

    task: str
    accuracy: Accuracy
    constant: tuple[str, float]
    shuffled: ShuffledControl


def task_result(task: str, predictions: Sequence[str | None], references: Sequence[str]) -> TaskResult:
    """Score one task: its predictions (`parse_value`) against the true values."""
    return TaskResult(
        task,
        attribute_accuracy(predictions, references),
        best_constant(references),
        shuffled_control(predictions, references),
    )


def render_results(results: Iterable[TaskResult], extra: Mapping[str, Mapping[str, float | str]] | None = None) -> str:
    """A text table of the tasks; ``extra``: further columns, name -> task -> share or text (a task may lack one)."""
    extra = extra or {}
    header = ["task", "n", "accuracy", "+-", "95 %", "unparsed", *extra, "best constant", "shuffled mean (max)"]
    rows = []
    for r in results:
        low, high = r.accuracy.interval
        own = [f"{r.accuracy.value:.3f}", f"{r.accuracy.standard_error:.3f}", f"{low:.2f}-{high:.2f}"]
        others = [_cell(column.get(r.task, "")) for column in extra.values()]
        controls = [f"{r.constant[1]:.3f} ({r.constant[0]})", f"{r.shuffled.mean:.3f} ({r.shuffled.max:.3f})"]
        rows.append([r.task, str(r.accuracy.total), *own, str(r.accuracy.unparsed), *others, *controls])
    return render_table(header, rows)


def render_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An aligned Markdown table; the first column is left-aligned, the others are right-aligned."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]
    padded = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in cells]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    rule = "|".join("-" * (w + 1) + ":" if i else "-" * (w + 2) for i, w in enumerate(widths))
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3f}"


def plain_words(text: str) -> str:
    """A text as answers and values are compared: case folded; hyphens, underscores and white space become one
    space; apostrophes become ASCII."""
    return re.sub(r"[-_\s]+", " ", text.casefold().replace("\u2019", "'"))


def _check(predictions: Sequence[str | None], references: Sequence[str]) -> None:
    if len(predictions) != len(references) or not references:
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references; need one each, 1 or more")
