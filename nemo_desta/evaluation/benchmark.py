"""The base of benchmarks that are not part of this package: one class tells files, items and rule."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nemo_desta.evaluation.official_rows import Raw, Row
from nemo_desta.evaluation.scores import Item, Quirk, Scores, Verdict, answer_of, strict_scores

__all__ = ["Benchmark", "Raw"]


class Benchmark:
    """A subclass sets ``FILES`` and implements `read` and `verdict`.

    ``FILES``: globs below the data root; those of the first one with a match are read (JSON, JSON Lines, CSV,
    parquet). ``KEY``: the field of a row that holds the model's answer. ``GROUPS``: fields to report by. ``PROMPT``:
    the prompt of items with options, one of evaluation/prompts.yaml.
    """

    FILES: tuple[str, ...] = ()
    KEY = "prediction"
    PROMPT = "letters"
    GROUPS: tuple[str, ...] = ()
    QUIRKS: tuple[Quirk, ...] = ()

    def read(self, row: Row, index: int, file: Path) -> Iterator[Raw]:
        """The items of one row. ``file``: relative to the benchmark's folder, as the paths of `Raw.audio`."""
        raise NotImplementedError

    def verdict(self, item: Item, answer: str) -> Verdict:
        """Whether an answer is right; None: it cannot be parsed, which counts as wrong."""
        raise NotImplementedError

    def strict(self, items: Sequence[Item]) -> Scores:
        """Every item counts; a missing answer is wrong."""
        answers = [answer_of(item, self.KEY, i) for i, item in enumerate(items)]
        verdicts = [None if a is None else self.verdict(item, a) for item, a in zip(items, answers, strict=True)]
        return strict_scores(items, verdicts, self.GROUPS)

    def official(self, items: Sequence[Item]) -> Scores:
        """The rules of the authors' own script, where there is one."""
        raise NotImplementedError("this benchmark has no official script")

    def layout(self) -> dict[str, Any]:
        """Its official files, as benchmark_files.yaml describes those of the shipped ones."""
        return {"where": "", "parts": [{"files": list(self.FILES), "reader": [self.read]}]}
