"""Sums the gradients of an accumulation window over the copies of the projector and of LoRA, and clips them.

Each tensor- and context-parallel rank projects its own clips and has its own share of LoRA's gradients, and each
data-parallel rank has its own rows, so the sum is over all of them. The copies stay equal because every rank then
makes the same step. A norm is that of all pipeline stages, which hold LoRA of different layers.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


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


def norm_over(own: Tensor | None, group: dist.ProcessGroup, device: torch.device) -> Tensor | None:
    """Norm of the gradients of all stages from each one's ``own``; None where no stage has gradients."""
    if group.size() == 1:
        return own
    square = torch.zeros((), device=device) if own is None else own.float().square()
    found = torch.stack([square, square.new_tensor(own is not None)])
    dist.all_reduce(found, group=group)
    return found[0].sqrt() if found[1] else None


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None, *, norm: Tensor | None) -> None:
    """Scale gradients down so that their global ``norm`` is at most ``max_norm``; None or 0: leave them."""
    if max_norm and norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)


def copy_from_first(module: nn.Module, group: dist.ProcessGroup) -> None:
    """Broadcast parameters and buffers from the first rank of ``group``."""
    if group.size() == 1:
        return
    first = dist.get_global_rank(group, 0)
    for tensor in [*module.parameters(), *module.buffers()]:
        dist.broadcast(tensor.detach(), src=first, group=group)
