"""The plan of batches, computed from metadata only: a pure function of (sources, settings, epoch).

A plan can be replayed to any position, so a resume needs two numbers: epoch and batches done. The plan has no clock,
thread or filter. Every data-parallel rank computes the same plan and takes its own column. When a resume has another
number of ranks or other settings, the rest of the epoch is planned again, without the rows that were already used.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from nemo_desta.data.costs import RowRef
from nemo_desta.data.row_source import WeightedSource
from nemo_desta.errors import RowError, row_guard

_ORDER, _POOL, _PASS = range(3)  # independent random streams


@dataclass(frozen=True)
class PlanSettings:
    """How rows become batches.

    ``batch_tokens``: upper bound of rows times longest row, in LLM positions. ``bucket_buffer_size``: rows per
    pool; a pool is sorted by length and divided into batches, which are then shuffled. Without ``shuffle`` rows keep
    the order of the files. ``rows_per_epoch``: only with weights; by default the number of rows of all sources.
    """

    batch_tokens: int
    max_batch_size: int = 32
    bucket_buffer_size: int = 2048
    shuffle: bool = True
    seed: int = 0
    rows_per_epoch: int | None = None


class PlannedBatch(NamedTuple):
    """One rank's part of step ``index``.

    ``rows`` may be empty in the last step of an epoch; the rank still takes part, so that all ranks make the same
    number of steps. ``bad_rows``: unusable rows that the plan met; each goes to one rank, once per epoch.
    """

    epoch: int
    index: int
    is_last: bool
    rows: list[RowRef]
    bad_rows: list[dict[str, Any]]


class Begun(NamedTuple):
    """The part of an epoch that an earlier plan covered: its first ``steps`` steps."""

    settings: PlanSettings
    num_ranks: int
    steps: int


@dataclass(eq=False)
class BatchPlan:
    """Batches of every epoch for one of ``num_ranks`` data-parallel ranks.

    Args:
        sources: rows and their shares. tokens: positions of a row, or RowError (see `RowCosts.tokens`).
        begun: an epoch and what earlier plans of it have given, in their order; its rows are left out of the rest.
    """

    sources: Sequence[WeightedSource]
    tokens: Callable[[RowRef], int]
    settings: PlanSettings
    _: KW_ONLY
    rank: int = 0
    num_ranks: int = 1
    begun: tuple[int, Sequence[Begun]] = (0, ())

    def __post_init__(self) -> None:
        self._starts = np.cumsum([0, *(len(weighted.source) for weighted in self.sources)])
        if empty := [weighted.source.name for weighted in self.sources if len(weighted.source) == 0]:
            raise ValueError(f"no rows in {', '.join(empty)}")

    def batches(self, epoch: int, start: int = 0) -> Iterator[PlannedBatch]:
        """This rank's batches of ``epoch`` from number ``start`` on.

        Raises:
            ValueError: not one row of the epoch can be used.
        """
        for number, (batches, bad_rows, is_last) in enumerate(self._steps(epoch)):
            if number >= start:
                rows = batches[self.rank] if self.rank < len(batches) else []
                named = [{key: bad[key] for key in bad if key != "ref"} for bad in bad_rows]
                yield PlannedBatch(epoch, number, is_last, rows, named[self.rank :: self.num_ranks])

    def num_batches(self, epoch: int = 0) -> int:
        """Steps in an epoch. Plans the whole epoch, which reads every row once."""
        return sum(1 for _ in self.batches(epoch))

    def order(self, epoch: int) -> np.ndarray:
        """Row numbers of an epoch (counted over all sources) in the order in which they are planned."""
        if self.sources[0].share is None:
            order = np.arange(self._starts[-1])
        else:
            order = np.concatenate([self._draw(number, epoch) for number in range(len(self.sources))])
        return self._rng(_ORDER, epoch).permutation(order) if self.settings.shuffle else order

    def _rest(self, epoch: int) -> np.ndarray:
        """`order` without the rows of earlier plans of the epoch, each removed as often as it was used."""
        order = self.order(epoch)
        if epoch != self.begun[0] or not self.begun[1]:
            return order
        given = np.zeros(int(self._starts[-1]), dtype=np.int64)
        for number, (settings, num_ranks, steps) in enumerate(self.begun[1]):
            earlier = (epoch, self.begun[1][:number])
            plan = BatchPlan(self.sources, self.tokens, settings, num_ranks=num_ranks, begun=earlier)
            for batches, bad_rows, _ in islice(plan._steps(epoch), steps):
                for ref in (*(ref for batch in batches for ref in batch), *(bad["ref"] for bad in bad_rows)):
                    given[self._starts[ref.source] + ref.index] += 1
        kept = np.ones(len(order), dtype=bool)
        for place, row_number in enumerate(order):
            if given[row_number] > 0:
                given[row_number] -= 1
                kept[place] = False
        return order[kept]

    def _steps(self, epoch: int) -> Iterator[tuple[list[list[RowRef]], list[dict[str, Any]], bool]]:
        """Per step: batches of all ranks, bad rows met since the last one, whether it is the epoch's last step."""
        order, size = self._rest(epoch), self.settings.bucket_buffer_size
        waiting: list[tuple[int, RowRef]] = []
        bad_rows: list[dict[str, Any]] = []
        last_step: list[list[RowRef]] | None = None
        for pool, first in enumerate(range(0, len(order), size)):
            for row_number in order[first : first + size]:
                number = int(np.searchsorted(self._starts, row_number, side="right")) - 1
                ref = RowRef(number, int(row_number - self._starts[number]))
                try:
                    with row_guard():
                        waiting.append((self.tokens(ref), ref))
                except RowError as error:
                    bad = bad_row(self.sources[ref.source].source, ref.index, error)
                    bad_rows.append({**bad, "ref": ref})
            is_last_pool = first + size >= len(order)
            steps, waiting = self._cut(waiting, is_last_pool)
            if self.settings.shuffle:
                whole = sum(len(step) == self.num_ranks for step in steps)  # a step with idle ranks stays the last
                steps = [steps[i] for i in self._rng(_POOL, epoch, pool).permutation(whole)] + steps[whole:]
            for step in steps:
                if last_step is not None:
                    yield last_step, bad_rows, False
                    bad_rows = []
                last_step = step
        if last_step is None:
            reasons = "; ".join(bad["detail"] for bad in bad_rows[:3])
            raise ValueError(f"none of {len(order)} rows can be used. The first ones: {reasons}")
        yield last_step, bad_rows, True

    def _cut(
        self, rows: list[tuple[int, RowRef]], is_last_pool: bool
    ) -> tuple[list[list[list[RowRef]]], list[tuple[int, RowRef]]]:
        """Group rows by length into steps of ``num_ranks`` batches. The remainder is returned for the next pool."""
        if self.settings.shuffle:
            rows = sorted(rows, key=lambda item: item[0])  # stable: equal lengths keep the epoch's order
        batches: list[list[tuple[int, RowRef]]] = []
        longest = 0
        for tokens, ref in rows:
            longest = max(longest, tokens)
            full = not batches or len(batches[-1]) == self.settings.max_batch_size
            if full or longest * (len(batches[-1]) + 1) > self.settings.batch_tokens:
                batches.append([])
                longest = tokens
            batches[-1].append((tokens, ref))
        # The last batch of a pool may still grow, and all ranks need a batch until the end of the epoch.
        whole = len(batches) if is_last_pool else (len(batches) - 1) // self.num_ranks * self.num_ranks
        kept = [[ref for _, ref in batch] for batch in batches[:whole]]
        steps = [kept[i : i + self.num_ranks] for i in range(0, len(kept), self.num_ranks)]
        return steps, [item for batch in batches[whole:] for item in batch]

    def _draw(self, number: int, epoch: int) -> np.ndarray:
        """The epoch's rows of one weighted source: the next window of endless reshuffled passes."""
        size = len(self.sources[number].source)
        total = self.settings.rows_per_epoch or int(self._starts[-1])
        shares = np.cumsum([0.0, *(weighted.share for weighted in self.sources)])
        ends = np.round(shares / shares[-1] * total).astype(np.int64)  # all quotas sum to the epoch
        quota = int(ends[number + 1] - ends[number])
        positions = np.arange(epoch * quota, (epoch + 1) * quota)
        drawn = np.empty(quota, dtype=np.int64)
        for turn in np.unique(positions // size):
            chosen = positions // size == turn
            shuffled = (
                self._rng(_PASS, number, int(turn)).permutation(size) if self.settings.shuffle else np.arange(size)
            )
            drawn[chosen] = shuffled[positions[chosen] % size]
        return drawn + self._starts[number]

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.settings.seed, *key])


def bad_row(source: Any, index: int, error: RowError) -> dict[str, Any]:
    """The record of a row that cannot be used: id, dataset, location, reason, detail."""
    try:
        with row_guard():
            row = source.row(index)
        row_id, dataset = row["id"], row.get("dataset") or source.name
    except RowError:
        row_id, dataset = "?", source.name
    return {
        "id": row_id,
        "dataset": dataset,
        "where": source.where(index),
        "reason": error.reason,
        "detail": str(error).removeprefix(f"{source.where(index)}: "),
    }
