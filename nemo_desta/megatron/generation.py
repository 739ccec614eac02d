"""Greedy answers of the split LLM, with a cache of keys and values. For a few validation rows, not for serving.

The prompts run once. Then each step runs one token of every row, as one sequence: except in attention, a row is no
different from a position. So a step needs nothing from tensor, sequence, context or pipeline parallelism beyond what a
prompt needs.
Letters: B rows, b those of a context-parallel rank, Z positions of the prompts, M new tokens, S positions of a pass,
D LLM width, A query heads, G key-value heads, H head size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from torch import Tensor, nn

from nemo_desta.megatron.attention import window_of
from nemo_desta.megatron.context import all_positions, find_positions
from nemo_desta.megatron.llm import StageLLM
from nemo_desta.megatron.loss import argmax
from nemo_desta.megatron.step import from_last_stage, run_schedule


@torch.no_grad()
def write_greedily(
    llm: StageLLM,
    embeds: Tensor | None,
    row_lens: Tensor,
    *,
    max_new_tokens: int,
    end_ids: Sequence[int],
    pad_id: int,
) -> Tensor:
    """Generated ids (B, at most M) on every rank of the copy, padded after an end id.

    Args:
        embeds: (B, Z, D), right padded prompts, on the first stage; None on the others. row_lens: (B,), at least 1.
        max_new_tokens: M.
    """
    ends = torch.tensor(list(end_ids), device=row_lens.device)
    running = torch.ones_like(row_lens, dtype=torch.bool)
    written: list[Tensor] = []
    with _caches(llm, torch.arange(row_lens.numel(), device=row_lens.device), max_new_tokens) as caches:
        positions = None
        while len(written) < max_new_tokens:
            ids = torch.where(running, _next_ids(llm, embeds, row_lens, positions), pad_id)
            positions = row_lens + len(written)
            for cache in caches:
                cache.positions = positions
            written.append(ids)
            running &= ~torch.isin(ids, ends)
            if not running.any():
                break
            if embeds is not None:
                embeds = llm.embed(ids[None])
    return torch.stack(written, dim=1)


def _next_ids(llm: StageLLM, embeds: Tensor | None, row_lens: Tensor, positions: Tensor | None) -> Tensor:
    """(B,) int64 on every rank of the copy: the likeliest token after what was read.

    Args:
        embeds: (B, Z, D) prompts, or (1, B, D) one token of each row, on the first stage.
        positions: (B,) of the tokens; None for prompts.
    """
    rows = torch.arange(row_lens.numel(), device=row_lens.device)

    def last_stage(batch: dict[str, Any], hidden: Tensor, non_loss_data: bool) -> Tensor:
        ids = torch.full_like(row_lens, -1)  # where another context-parallel rank knows
        here, where = find_positions(row_lens - 1 if positions is None else rows, hidden.shape[0])
        if here.any():
            states = hidden[where[here], rows[here] if positions is None else 0]
            ids[here] = argmax(llm.head(states), group=parallel_state.get_tensor_model_parallel_group())
        return ids

    found = run_schedule(
        llm, lambda batch: embeds, [{}], last_stage, forward_only=True, collect=True, positions=positions
    )
    return from_last_stage(found, (1, row_lens.numel()), torch.int64, llm, over_context=dist.ReduceOp.MAX)[0]


@contextmanager
def _caches(llm: StageLLM, rows: Tensor, num_new: int) -> Iterator[list["CachedAttention"]]:
    """Attention with a cache in every layer, until the block ends."""
    layers = [layer.self_attention for layer in llm.gpt.decoder.layers]
    plain = [layer.core_attention for layer in layers]
    length = llm.layout.padded_length(rows.numel()) // llm.layout.context_parallel_size
    here_where, scale = find_positions(rows, length), llm.config.softmax_scale
    caches = [
        CachedAttention(
            layer.core_attention, *here_where, num_new, scale=scale, window=window_of(llm.config, layer.layer_number)
        )
        for layer in layers
    ]
    try:
        for layer, cache in zip(layers, caches, strict=True):
            layer.core_attention = cache
        yield caches
    finally:
        for layer, attention in zip(layers, plain, strict=True):
            layer.core_attention = attention


class CachedAttention(nn.Module):
    """A layer's attention that keeps keys and values of the prompts, and then takes one token of every row.

    Under context parallelism a rank keeps the rows whose tokens it will be given.

    Args:
        plain: the layer's own, used for prompts. here, where: (B,), which rows this rank is given in a step, and their
            places. num_new: M, how many tokens follow. scale: of the scores, if it is not 1 / sqrt(H). window: as
            `window_of` says.
    """

    positions: Tensor | None = None  # (B,) of the tokens; None while prompts are read

    def __init__(
        self,
        plain: nn.Module,
        here: Tensor,
        where: Tensor,
        num_new: int,
        *,
        scale: float | None = None,
        window: int | None = None,
    ) -> None:
        super().__init__()
        self.scale, self.window = scale, window
        self.plain, self.here, self.where, self.num_new = plain, here, where[here], num_new

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """query: (S, B, A, H); key, value: (S, B, G, H) -> (S, B, A * H). For tokens S counts rows, and B is 1."""
        if self.positions is None:
            self.keys, self.values = self._keep(key), self._keep(value)
            return self.plain(query, key, value, *args, **kwargs)
        at, mixed = self.positions[self.here], query.new_zeros(query.shape[0], 1, query.shape[2:].numel())
        rows = torch.arange(at.numel(), device=at.device)
        self.keys[rows, at], self.values[rows, at] = key[self.where, 0], value[self.where, 0]
        places = torch.arange(self.keys.shape[1], device=at.device)
        hidden = places > at[:, None]
        if self.window is not None:
            hidden |= places <= at[:, None] - self.window
        query = query[self.where, 0].unflatten(1, (key.shape[2], -1))  # (b, A, H) -> (b, G, A / G, H)
        scores = torch.einsum("bgah,bzgh->bgaz", query, self.keys).float() * (self.scale or query.shape[-1] ** -0.5)
        weights = scores.masked_fill(hidden[:, None, None], float("-inf")).softmax(-1).to(query.dtype)
        mixed[self.where, 0] = torch.einsum("bgaz,bzgh->bgah", weights, self.values).flatten(1)
        return mixed

    def _keep(self, x: Tensor) -> Tensor:
        """(S, B, G, H) -> (b, Z + M, G, H)"""
        return F.pad(all_positions(x).transpose(0, 1)[self.here], (0, 0, 0, 0, 0, self.num_new))
