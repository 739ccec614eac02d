"""Splits the clips of a batch over the tensor- and context-parallel ranks, which work on the same rows.

Vectors are all-gathered; in backward each rank receives the gradient of its own clips.
Letters: A clips of the batch, S samples, W vectors of the longest clip, D LLM width.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def share_bounds(num_clips: int, num_ranks: int) -> list[int]:
    """Rank r takes clips ``bounds[r]:bounds[r + 1]``: shares differ by one clip at most, and may be empty."""
    return [num_clips * rank // num_ranks for rank in range(num_ranks + 1)]


def perceive_shared(
    perceive: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    audio: Tensor,
    audio_lens: Tensor,
    vector_lens: Tensor,
    *,
    output_size: int,
    dtype: torch.dtype,
    group: dist.ProcessGroup,
    context_group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Vectors (A, W, D) of all clips on every rank of ``group``, each clip encoded by one of them.

    Args:
        perceive: (a, S), (a,) -> vectors (a, w, D), lens (a,). audio: (A, S). audio_lens, vector_lens: (A,), the
            same on every rank. output_size: D.
        dtype: of the vectors. context_group: the part of ``group`` whose ranks hold different positions.
    """
    bounds = share_bounds(audio_lens.numel(), group.size())
    start, stop = bounds[group.rank()], bounds[group.rank() + 1]
    width = int(vector_lens.max())
    if start == stop:  # no clip here, but the backward pass has collectives that need every rank
        own = torch.zeros(0, width, output_size, dtype=dtype, device=audio.device)
        own.requires_grad_(torch.is_grad_enabled())
    else:
        lens = audio_lens[start:stop]
        own, found = perceive(audio[start:stop, : int(lens.max())], lens)
        expected = vector_lens[start:stop]
        if not torch.equal(found.to(expected.device), expected):
            counts = f"{found.tolist()} vectors, {expected.tolist()} were expected"
            raise ValueError(f"clips of {lens.tolist()} samples became {counts}")
        own = F.pad(own[:, :width].to(dtype), (0, 0, 0, width - min(width, own.shape[1])))
    return own if group.size() == 1 else _Gather.apply(own, bounds, group, context_group)


class _Gather(torch.autograd.Function):
    """Own share (a, W, D) -> all clips (A, W, D); backward slices the own share of the gradient.

    Tensor-parallel ranks all have the whole gradient of their positions: the LLM has summed it. A context-parallel
    rank has that of its own positions and zero elsewhere, so over these ranks the gradients are summed first: a clip
    may lie on other ranks' positions than on those of the rank that encodes it.
    """

    @staticmethod
    def forward(
        ctx, own: Tensor, bounds: list[int], group: dist.ProcessGroup, context_group: dist.ProcessGroup | None
    ) -> Tensor:
        ctx.context_group = context_group
        ctx.share = slice(bounds[group.rank()], bounds[group.rank() + 1])
        counts = [stop - start for start, stop in zip(bounds, bounds[1:], strict=False)]
        padded = F.pad(own, (0, 0, 0, 0, 0, max(counts) - own.shape[0]))
        gathered = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(gathered, padded.contiguous(), group=group)
        return torch.cat([clips[:count] for clips, count in zip(gathered, counts, strict=True)])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        if ctx.context_group is not None and ctx.context_group.size() > 1:
            grad = grad.clone(memory_format=torch.contiguous_format)  # autograd's tensor is not ours to change
            dist.all_reduce(grad, group=ctx.context_group)
        return grad[ctx.share], None, None, None
