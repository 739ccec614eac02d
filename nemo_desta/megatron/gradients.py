"""Sums the gradients of an accumulation window over the copies of the projector, and clips them.

Each tensor- and context-parallel rank projects its own clips and each data-parallel rank its own rows, so the sum is
over all of them.
The copies stay equal because every rank then makes the same step.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn


def sum_gradients(parameters: Iterable[nn.Parameter], group: dist.ProcessGroup) -> None:
    """Sum the gradients of trained parameters over ``group`` in place; a rank without one counts as zero."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        if parameter.grad is None:  # this rank had no clip, but the all-reduce needs every rank
            parameter.grad = torch.zeros_like(parameter)
    if group.size() > 1:
        sums = [dist.all_reduce(parameter.grad, group=group, async_op=True) for parameter in trained]
        for pending in sums:
            pending.wait()


def clip_global_norm(parameters: Iterable[nn.Parameter], max_norm: float | None) -> None:
    """Scale gradients down to a global norm of at most ``max_norm``; None or 0: leave them."""
    if max_norm:
        nn.utils.clip_grad_norm_([parameter for parameter in parameters if parameter.grad is not None], max_norm)


def copy_from_first(module: nn.Module, group: dist.ProcessGroup) -> None:
    """Broadcast parameters and buffers from the first rank of ``group``."""
    if group.size() == 1:
        return
    first = dist.get_global_rank(group, 0)
    for tensor in [*module.parameters(), *module.buffers()]:
        dist.broadcast(tensor.detach(), src=first, group=group)
