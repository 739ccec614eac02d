"""Greedy answers of the split LLM, with a cache of keys and values. For a few validation rows, not for serving.

The prompts run once. Then each step runs one token of every row, as one sequence: except in attention, a row is no
different from a position. So a step needs nothing from tensor, sequence or pipeline parallelism beyond what a prompt
needs.
Letters: B rows, Z positions of the prompts, M new tokens, S positions of a pass, D LLM width, A query heads, G
key-value heads, H head size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from torch import Tensor, nn

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
    """Generated ids (B, at most M) on every rank of the model-parallel group, padded after an end id.

    Args:
        embeds: (B, Z, D), right padded prompts, on the first stage; None on the others. row_lens: (B,), at least 1.
        max_new_tokens: M.
    """
    ends = torch.tensor(list(end_ids), device=row_lens.device)
    running = torch.ones_like(row_lens, dtype=torch.bool)
    written: list[Tensor] = []
    with _caches(llm, max_new_tokens) as caches:
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
    """(B,) int64 on every rank of the pipeline: the likeliest token after what was read.

    Args:
        embeds: (B, Z, D) prompts, or (1, B, D) one token of each row, on the first stage.
        positions: (B,) of the tokens; None for prompts.
    """

    def last_stage(batch: dict[str, Any], hidden: Tensor, non_loss_data: bool) -> Tensor:
        rows = torch.arange(row_lens.numel(), device=hidden.device)
        read = hidden[row_lens - 1, rows] if positions is None else hidden[rows, 0]
        return argmax(llm.head(read), group=parallel_state.get_tensor_model_parallel_group())

    found = run_schedule(
        llm, lambda batch: embeds, [{}], last_stage, forward_only=True, collect=True, positions=positions
    )
    return from_last_stage(found, (1, row_lens.numel()), torch.int64, llm)[0]


@contextmanager
def _caches(llm: StageLLM, num_new: int) -> Iterator[list["CachedAttention"]]:
    """Attention with a cache in every layer, until the block ends."""
    layers = [layer.self_attention for layer in llm.gpt.decoder.layers]
    plain = [layer.core_attention for layer in layers]
    caches = [CachedAttention(attention, num_new) for attention in plain]
    try:
        for layer, cache in zip(layers, caches, strict=True):
            layer.core_attention = cache
        yield caches
    finally:
        for layer, attention in zip(layers, plain, strict=True):
            layer.core_attention = attention


class CachedAttention(nn.Module):
    """A layer's attention that keeps keys and values of the prompts, and then takes one token of every row.

    Args:
        plain: the layer's own, used for prompts. num_new: M, how many tokens follow.
    """

    positions: Tensor | None = None  # (B,) of the tokens; None while prompts are read

    def __init__(self, plain: nn.Module, num_new: int) -> None:
        super().__init__()
        self.plain, self.num_new = plain, num_new

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """query: (S, B, A, H); key, value: (S, B, G, H) -> (S, B, A * H). For tokens S counts rows, and B is 1."""
        if self.positions is None:
            self.keys, self.values = (F.pad(x.transpose(0, 1), (0, 0, 0, 0, 0, self.num_new)) for x in (key, value))
            return self.plain(query, key, value, *args, **kwargs)
        B, S = self.positions.numel(), query.shape[0]  # under sequence parallelism there is padding after the rows
        rows = torch.arange(B, device=query.device)
        self.keys[rows, self.positions], self.values[rows, self.positions] = key[:B, 0], value[:B, 0]
        later = torch.arange(self.keys.shape[1], device=query.device) > self.positions[:, None]
        query = query[:B, 0].unflatten(1, (key.shape[2], -1))  # (B, A, H) -> (B, G, A / G, H)
        scores = torch.einsum("bgah,bzgh->bgaz", query, self.keys).float() * query.shape[-1] ** -0.5
        weights = scores.masked_fill(later[:, None, None], float("-inf")).softmax(-1).to(query.dtype)
        mixed = torch.einsum("bgaz,bzgh->bgah", weights, self.values).flatten(1)
        return F.pad(mixed, (0, 0, 0, S - B))[:, None]
