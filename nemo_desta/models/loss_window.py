"""Token-weighted loss over an accumulation window: gradients of summed losses, divided once by the token count.

Lightning divides each micro-batch's loss by ``accumulate_grad_batches`` and data parallelism averages over ranks; both
are undone here, so one big batch, many micro-batches and many ranks give the same gradients (design decision 8).
"""

import logging
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn

logger = logging.getLogger(__name__)


class LossWindow:
    """Counts supervised tokens and remembers row ids since the last optimiser step."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self.row_ids: list[str] = []

    def add(self, num_tokens: int, row_ids: Iterable[str]) -> None:
        self.num_tokens += num_tokens
        self.row_ids.extend(row_ids)

    def total(self, device: torch.device, group: dist.ProcessGroup | None = None) -> int:
        """Tokens of the window over the data-parallel ranks (``group``; all ranks when None)."""
        total = torch.tensor(self.num_tokens, dtype=torch.int64, device=device)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(total, group=group)
        return int(total)

    def normalise(self, parameters: Iterable[nn.Parameter], total: int, *, factor: float = 1.0) -> None:
        """Multiply gradients by ``factor / total``; in a window without targets set them to None."""
        trained = [parameter for parameter in parameters if parameter.grad is not None]
        if total == 0:
            logger.warning("no supervised token in this step (rows %s): step skipped", ", ".join(self.row_ids[:8]))
            for parameter in trained:
                parameter.grad = None
        elif trained:
            torch._foreach_mul_([parameter.grad for parameter in trained], factor / total)

    def clear(self) -> None:
        self.num_tokens, self.row_ids = 0, []

    def close(self, parameters: Iterable[nn.Parameter], *, averaged_over: int, device: torch.device) -> int:
        """Turn accumulated gradients into those of the mean loss per token; returns the tokens of all ranks.

        ``averaged_over``: the divisor that Lightning applied (accumulation steps x data-parallel ranks). A window
        without a target leaves no gradient, so that the optimiser skips every parameter on every rank.
        """
        total = self.total(device)
        self.normalise(parameters, total, factor=averaged_over)
        self.clear()
        return total
