"""Greedy generation with an LLM that is split over ranks: for a few validation rows, not for serving.

There is no KV cache: every new token runs the whole text again. That is slow, and correct under any layout.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nemo_desta.megatron.llm import StageLLM
from nemo_desta.megatron.step import run_next_ids


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
    """Generated ids (B, at most max_new_tokens) on every rank of the model-parallel group, padded after an end id.

    Args:
        embeds: (B, Z, D), right padded prompts, on the first stage; None on the others. row_lens: (B,), at least 1.
    """
    ends = torch.tensor(list(end_ids), device=row_lens.device)
    running = torch.ones_like(row_lens, dtype=torch.bool)
    rows = torch.arange(row_lens.numel(), device=row_lens.device)
    written: list[Tensor] = []
    for count in range(max_new_tokens):
        ids = run_next_ids(llm, embeds, row_lens + count)
        ids = torch.where(running, ids, pad_id)
        written.append(ids)
        running &= ~torch.isin(ids, ends)
        if not running.any():
            break
        if embeds is not None:
            embeds = torch.cat([embeds, embeds.new_zeros(embeds.shape[0], 1, embeds.shape[2])], dim=1)
            embeds[rows, row_lens + count] = llm.embed(ids[:, None])[:, 0].to(embeds.dtype)
    return torch.stack(written, dim=1)
