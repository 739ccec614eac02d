"""Tokens that a row takes in the LLM: text plus audio tokens, computed before any audio is decoded."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import numpy as np

from nemo_desta.core.prompting import Example, PromptBuilder
from nemo_desta.data.audio_io import count_samples
from nemo_desta.data.row_schema import KeyTally
from nemo_desta.data.row_source import RowSource
from nemo_desta.data.rows import Row, audio_entries
from nemo_desta.errors import RowError, row_guard

#: Rows per source, evenly spread, from which characters per token are estimated.
CALIBRATION_ROWS = 256

#: With ``text_tokens: auto``, tokens are estimated from this number of rows.
ESTIMATE_FROM = 200_000

#: A source with at least this many rows but no durations is warned about: every rank opens all its audio files.
WARN_HEADERS_FROM = 10_000

logger = logging.getLogger(__name__)


class RowRef(NamedTuple):
    """A row by number: ``index`` in source ``source``."""

    source: int
    index: int


@dataclass(eq=False)
class RowCosts:
    """Tokens of a row, cached after the first computation (4 bytes per row).

    Args:
        num_audio_tokens: number of samples of a clip -> number of its audio vectors.
        max_row_tokens: a longer row is bad (no batch can hold it). max_target_tokens: the same for the target alone.
        text_tokens: "exact" tokenises every row once; "estimate" divides its characters by a conservative ratio
            measured on rows of each source; "auto" estimates from `ESTIMATE_FROM` rows (every rank plans all batches).
    """

    sources: Sequence[RowSource]
    prompts: PromptBuilder
    num_audio_tokens: Callable[[int], int]
    _: KW_ONLY
    sampling_rate: int
    max_row_tokens: int
    max_target_tokens: int | None = None
    text_tokens: str = "auto"

    def __post_init__(self) -> None:
        self._known = [np.zeros(len(source), dtype=np.int32) for source in self.sources]
        many = self.text_tokens == "auto" and sum(map(len, self.sources)) >= ESTIMATE_FROM
        self._chars_per_token = self._calibrate() if many or self.text_tokens == "estimate" else None
        self._warned: set[str] = set()
        self._keys = [KeyTally(source.rules) for source in self.sources]
        self._asked = [0] * len(self.sources)

    def tokens(self, ref: RowRef) -> int:
        """Number of LLM positions of the row.

        Raises:
            RowError: the row cannot be used.
        """
        known = self._known[ref.source]
        try:
            if not known[ref.index]:
                known[ref.index] = self._compute(ref)
            return int(known[ref.index])
        finally:
            self._asked[ref.source] += 1
            if self._asked[ref.source] == len(known) and (keys := str(self._keys[ref.source])):
                logger.warning("unknown keys in rows of '%s': %s", self.sources[ref.source].name, keys)

    def _compute(self, ref: RowRef) -> int:
        source = self.sources[ref.source]
        row = source.row(ref.index)
        audio = sum(self.num_audio_tokens(n) for n in self._num_samples(source, ref.index, row))
        if self._chars_per_token is None:
            example = self.prompts.example(row)
            check_target(example, self.max_target_tokens)
            text = len(example.ids) - len(example.audios)
        else:
            chars, overhead = _text_size(row)
            text = overhead + math.ceil(chars / self._chars_per_token)
        if audio + text > self.max_row_tokens:
            raise RowError(
                "too_long",
                f"{audio} audio + {text} text tokens do not fit into a batch of {self.max_row_tokens} tokens; "
                "shorten the row or raise batch_tokens",
            )
        self._keys[ref.source].add(row, source.where(ref.index))
        return audio + text

    def _num_samples(self, source: RowSource, index: int, row: Row) -> list[int]:
        entries = audio_entries(row)
        if all(entry.get("duration") is not None for entry in entries):
            return [max(1, round(entry["duration"] * self.sampling_rate)) for entry in entries]
        if len(source) >= WARN_HEADERS_FROM and source.name not in self._warned:
            self._warned.add(source.name)
            logger.warning(
                "rows of '%s' have no 'duration', so every rank opens each audio file once to plan its batches; "
                "python -m nemo_desta.data.durations writes them into the rows",
                source.name,
            )
        return [count_samples(file, self.sampling_rate) for file in source.audio_files(index, row)]

    def _calibrate(self) -> float:
        """The 10 % quantile of characters per token, so that estimates tend to be too high."""
        ratios = []
        spread = [(s, i) for s in self.sources for i in range(0, len(s), max(1, len(s) // CALIBRATION_ROWS))]
        for source, index in spread:
            try:
                with row_guard():
                    row = source.row(index)
                    example = self.prompts.example(row)
                    chars, overhead = _text_size(row)
            except RowError:
                continue
            ratios.append(chars / max(1, len(example.ids) - len(example.audios) - overhead))
        return float(np.quantile(ratios, 0.1)) if ratios else 1.0


def check_target(example: Example, max_target_tokens: int | None) -> None:
    """Raise `RowError` when the target is longer than the limit."""
    length = len(example.ids) - example.prompt_len
    if max_target_tokens is not None and length > max_target_tokens:
        raise RowError(
            "target_too_long",
            f"the target has {length} tokens, the limit is {max_target_tokens} (max_target_tokens); nothing is cut",
        )


def _text_size(row: Row) -> tuple[int, int]:
    """Characters of a row, and the tokens that the template adds around its messages (about five each)."""
    transcripts = sum(len(entry.get("text") or "") for entry in audio_entries(row))
    chars = len(row["response"]) + transcripts + sum(len(message["content"]) for message in row["messages"])
    return chars, 5 * (len(row["messages"]) + 1)
