"""Context parallelism: which positions a rank holds, and how it gets at those of the others.

The positions are 2 x CP chunks of equal length. Rank r holds chunk r, which attends to little, and chunk
2 x CP - 1 - r, which attends to much: all ranks have the same work. megatron-core's rotary positions and
TransformerEngine's attention expect this order, too.
Letters: Z positions with padding, N positions that are asked for.
"""

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor


def own_chunks() -> tuple[int, int]:
    """Numbers of this rank's two chunks."""
    rank, size = parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()
    return rank, 2 * size - 1 - rank


def own_positions(whole: Tensor) -> Tensor:
    """(Z, ...) -> (Z / CP, ...)"""
    size = parallel_state.get_context_parallel_world_size()
    if size == 1:
        return whole
    chunks = whole.chunk(2 * size)
    return torch.cat([chunks[number] for number in own_chunks()])


def all_positions(own: Tensor) -> Tensor:
    """(Z / CP, ...) on each rank -> (Z, ...) in order; in backward a rank gets the sum of all ranks' gradients."""
    group = parallel_state.get_context_parallel_group()
    if group.size() == 1:
        return own
    chunks = gather_from_sequence_parallel_region(own, group=group).unflatten(0, (group.size(), 2, -1))
    return torch.cat([chunks[:, 0].flatten(0, 1), chunks[:, 1].flip(0).flatten(0, 1)])


def find_positions(positions: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Which of ``positions`` (N,) this rank holds: (N,) bool; and where in its ``length`` = Z / CP: (N,)."""
    if parallel_state.get_context_parallel_world_size() == 1:
        return torch.ones_like(positions, dtype=torch.bool), positions
    half = length // 2
    chunk, within = positions // half, positions % half
    first, second = own_chunks()
    return (chunk == first) | (chunk == second), within + half * (chunk == second)
