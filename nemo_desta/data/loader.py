"""The loader: plan -> workers -> batches, starting at any position. For Lightning it is a plain iterable."""

import os
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from nemo_desta.data.dataset import Batch, RowDataset
from nemo_desta.data.sampler import BatchPlan


@dataclass(eq=False)
class PlanLoader:
    """Batches of one epoch per ``iter()``, which calls ``position`` for its start.

    It has no length (computing one would read every row) and no state of its own: the position counts batches that
    were trained on, not batches that workers have prefetched.

    Args:
        position: returns (epoch, first batch) when an iteration starts.
    """

    plan: BatchPlan
    dataset: RowDataset
    _: KW_ONLY
    position: Callable[[], tuple[int, int]]
    num_workers: int = 0
    prefetch_factor: int = 2

    def __post_init__(self) -> None:
        self._iterator: Iterator[Batch] | None = None  # Lightning shuts down the workers of an attribute of this name

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the position. Nothing is read before the first, since Lightning calls ``iter`` as a test."""
        if self.num_workers > 0:
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # forked tokenizers must not start threads
        self._iterator = iter(
            DataLoader(
                self.dataset,
                batch_size=None,
                sampler=self.plan.batches(*self.position()),
                num_workers=self.num_workers,
                prefetch_factor=self.prefetch_factor if self.num_workers > 0 else None,
                collate_fn=_as_it_is,
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator().manual_seed(0),  # otherwise a resumed run draws from the global one
            )
        )
        yield from self._iterator


class SizedPlanLoader(PlanLoader):
    """A loader of the first epoch only, with a length: for validation sets, which are read completely anyway."""

    def __init__(self, plan: BatchPlan, dataset: RowDataset, **kwargs: Any) -> None:
        super().__init__(plan, dataset, position=lambda: (0, 0), **kwargs)
        self._length: int | None = None

    def __len__(self) -> int:
        if self._length is None:  # reads every row, so only on request
            self._length = self.plan.num_batches()
        return self._length


def _as_it_is(batch: Batch) -> Batch:
    return batch
