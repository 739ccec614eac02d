"""Cross-entropy over a vocabulary that is split over tensor-parallel ranks, at supervised positions only.

Letters: N supervised tokens, Z positions of this rank, B rows, D LLM width, P columns of the vocabulary on this rank.
"""

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from torch import Tensor

from nemo_desta.core.splice import Places
from nemo_desta.megatron.context import find_positions


def predicting_states(hidden: Tensor, places: Places) -> tuple[Tensor, Tensor]:
    """(Z, B, D) -> (N, D), (N,): the hidden states one position before each target, and the target's id.

    Under context parallelism, of those targets whose hidden state is on this rank.
    """
    here, where = find_positions(places.target_positions - 1, hidden.shape[0])
    return hidden[where[here], places.target_rows[here]], places.target_ids[here]


def summed_cross_entropy(logits: Tensor, target_ids: Tensor) -> Tensor:
    """Scalar loss over N tokens. logits: (N, P), -inf at padded ids, overwritten; target_ids: (N,)."""
    return vocab_parallel_cross_entropy(logits, target_ids).sum()


def argmax(logits: Tensor, *, group: dist.ProcessGroup) -> Tensor:
    """(N, P) on each rank -> (N,) int64, ids over the whole vocabulary; of equal logits the first, as torch.argmax."""
    values, ids = logits.detach().max(dim=-1)
    best = values.clone()
    dist.all_reduce(best, op=dist.ReduceOp.MAX, group=group)
    nowhere = torch.iinfo(torch.int64).max
    ids = torch.where(values == best, ids + group.rank() * logits.shape[-1], nowhere)
    dist.all_reduce(ids, op=dist.ReduceOp.MIN, group=group)
    return ids
