"""Self-generation (DeSTA): a frozen LLM answers prompts about seed descriptions; its answers are the training targets.

corpus rows -> draw prompts -> description + newline + prompt -> LLM -> DeSTA-AQA rows in one JSONL file. A killed run
goes on by reading the ids in its output; clips and answers that cannot be used are counted by reason and named.
"""

import logging
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from tqdm import tqdm

from nemo_desta.recipes.corpus import audio_problem
from nemo_desta.recipes.describe import describe
from nemo_desta.recipes.engines import Engine, Generation, Sampling
from nemo_desta.recipes.output import RowFile
from nemo_desta.recipes.prompts import Prompt, draw

logger = logging.getLogger(__name__)

#: Batches are filled from this many at a time, sorted by length, so that little of a batch is padding.
_BATCHES_SORTED_TOGETHER = 16


@dataclass
class Summary:
    """What became of every wanted row.

    ``to_write``: rows that a run without engine found to be made. ``dropped``: reason -> rows; ``examples``: reason ->
    the first few that it met.
    """

    written: int = 0
    truncated: int = 0
    to_write: int = 0
    already_there: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def num_dropped(self) -> int:
        return sum(self.dropped.values())

    @property
    def num_settled(self) -> int:
        """Rows whose fate is known, of the clips that the run came to."""
        return self.written + self.to_write + self.already_there + self.num_dropped

    def drop(self, reason: str, what: str, count: int = 1) -> None:
        self.dropped[reason] += count
        logger.info("dropped, %s: %s", reason, what)
        if len(self.examples.setdefault(reason, [])) < 3:
            self.examples[reason].append(what)

    def __str__(self) -> str:
        lines = [f"rows written: {self.written} ({self.truncated} of them truncated)"]
        if self.to_write:
            lines = [f"rows to write: {self.to_write}"]
        lines += [f"rows already there: {self.already_there}", f"rows dropped: {self.num_dropped}"]
        for reason, count in self.dropped.most_common():
            lines.append(f"  {reason}: {count}, such as {'; '.join(self.examples[reason])}")
        return "\n".join(lines)


def self_generate(
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[Prompt],
    engine: Engine | None,
    output: str | PathLike[str],
    *,
    data_root: str | PathLike[str],
    prompts_per_clip: int = 1,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    batch_size: int = 32,
    dialect: str = "desta25",
    audio_locator_tag: str = "<|AUDIO|>",
    progress: bool = True,
) -> Summary:
    """Write one row per clip and drawn prompt to ``output`` (JSONL), skipping the ids that it already holds.

    ``rows``: manifest rows (`read_corpus`). ``sampling.seed`` seeds the draw of prompts, too. Each batch of
    ``batch_size`` answers reaches the disk before the next one begins, so that a kill loses one batch at most. With
    ``engine`` None nothing is written: every check but the LLM's is made and the rows are counted.
    """
    summary = Summary()
    with RowFile(output, readonly=engine is None) as file:
        todo = _todo(rows, prompts, file.ids, summary, data_root, prompts_per_clip, sampling.seed, dialect)
        with tqdm(total=len(rows) * prompts_per_clip, desc="rows", disable=not progress, unit="row") as bar:
            for batch in _batches(todo, batch_size):
                if engine is None:
                    summary.to_write += len(batch)
                else:
                    file.append(_answer(batch, engine, sampling, audio_locator_tag, summary))
                bar.set_postfix(dropped=summary.num_dropped, refresh=False)
                bar.update(summary.num_settled - bar.n)
            bar.update(summary.num_settled - bar.n)
    return summary


@dataclass(frozen=True)
class _Item:
    """One row to be made."""

    id: str
    clip: Mapping[str, Any]
    description: str
    prompt: Prompt
    seed: int

    @property
    def question(self) -> str:
        return f"{self.description}\n{self.prompt.prompt}"


def _todo(
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[Prompt],
    done: set[str],
    summary: Summary,
    data_root: str | PathLike[str],
    prompts_per_clip: int,
    seed: int,
    dialect: str,
) -> Iterator[_Item]:
    for clip in rows:
        wanted = [f"{clip['id']}-p{k}" for k in range(prompts_per_clip)]
        summary.already_there += sum(row_id in done for row_id in wanted)
        missing = [row_id for row_id in wanted if row_id not in done]
        if not missing:
            continue
        if problem := audio_problem(clip, data_root):
            summary.drop(problem[0], f"{clip['id']} ({problem[1]})", len(missing))
            continue
        drawn = draw(prompts, clip, prompts_per_clip, seed=seed)
        if len(drawn) < prompts_per_clip:
            what = f"{clip['id']} ({len(drawn)} of {prompts_per_clip} prompts fit)"
            summary.drop("no fitting prompt", what, prompts_per_clip - len(drawn))
        description = describe(clip, dialect)
        for row_id, prompt in zip(wanted, drawn, strict=False):
            if row_id not in done:
                yield _Item(row_id, clip, description, prompt, random.Random(f"{seed}:{row_id}").getrandbits(32))


def _batches(items: Iterator[_Item], size: int) -> Iterator[list[_Item]]:
    window: list[_Item] = []
    for item in items:
        window.append(item)
        if len(window) == size * _BATCHES_SORTED_TOGETHER:
            yield from _sorted_batches(window, size)
            window = []
    yield from _sorted_batches(window, size)


def _sorted_batches(window: list[_Item], size: int) -> Iterator[list[_Item]]:
    window.sort(key=lambda item: len(item.question))
    yield from (window[first : first + size] for first in range(0, len(window), size))


def _answer(
    batch: Sequence[_Item], engine: Engine, sampling: Sampling, tag: str, summary: Summary
) -> list[dict[str, Any]]:
    conversations = [[{"role": "user", "content": item.question}] for item in batch]
    answers = engine.generate(conversations, sampling, [item.seed for item in batch])
    rows = []
    for item, answer in zip(batch, answers, strict=True):
        if reason := _unusable(answer):
            summary.drop(reason, f"{item.id} ({answer.error or answer.text[:60]!r})")
            continue
        rows.append(_row(item, answer, engine.name, tag))
        summary.written += 1
        summary.truncated += answer.truncated
    return rows


def _unusable(answer: Generation) -> str | None:
    if answer.error is not None:
        return "LLM error"
    if not answer.text.strip():
        return "empty answer"
    return "answer is not text" if "\ufffd" in answer.text else None


def _row(item: _Item, answer: Generation, llm: str, tag: str) -> dict[str, Any]:
    audio = {"audio": item.clip["audio"], "text": item.clip.get("transcript")}
    return {
        "id": item.id,
        "dataset": item.clip["source"],
        "seed_description": item.description,
        "prompt": item.prompt.prompt,
        "messages": [{"role": "user", "content": f"{tag}\n{item.prompt.prompt}", "audios": [audio]}],
        "response": answer.text,
        "llm": llm,
        "prompt_id": item.prompt.prompt_id,
        "seed": item.seed,
        "stage": "self_generate",
        "truncated": answer.truncated,
    }
