"""Put audio vectors where the text has a slot, and know which positions are supervised.

Letters: B rows, L text positions (slots count as one), A clips, W vectors per clip, D LLM width, Z spliced length.
Everything is computed from lengths; no id is ever compared with a pad id (Llama 3.1 has none, others share it with
eos).
"""

from typing import NamedTuple

import torch
from torch.nn.functional import pad

from nemo_desta.types import AUDIO_SLOT


class Spliced(NamedTuple):
    """What the LLM reads: ``inputs_embeds`` (B, Z, D), ``attention_mask`` (B, Z) bool, ``position_ids`` (B, Z).

    ``target_rows``, ``target_positions``, ``target_ids``: (N,) int64 each. Token ``target_ids[i]`` of row
    ``target_rows[i]`` stands at ``target_positions[i]``; the hidden state one position earlier predicts it.
    """

    inputs_embeds: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    target_rows: torch.Tensor
    target_positions: torch.Tensor
    target_ids: torch.Tensor


def splice(
    text_embeds: torch.Tensor,
    input_ids: torch.Tensor,
    input_lens: torch.Tensor,
    prompt_lens: torch.Tensor,
    *,
    vectors: torch.Tensor,
    vector_lens: torch.Tensor,
    padding_side: str = "right",
) -> Spliced:
    """Replace every `AUDIO_SLOT` by its clip's vectors, clips in reading order.

    Args:
        text_embeds: (B, L, D), embeddings of ``input_ids``; what stands at slots and padding is not read.
        input_ids: (B, L) int64, right padded. input_lens: (B,) prompt + target. prompt_lens: (B,) prompt alone.
        vectors: (A, W, D). vector_lens: (A,).
        padding_side: "right" for training, "left" for generation; the loss does not depend on it.

    Raises:
        ValueError: the number of slots is not the number of clips.
    """
    B, L, D = text_embeds.shape
    device = text_embeds.device
    column = torch.arange(L, device=device)
    valid = column < input_lens[:, None]
    slots = (input_ids == AUDIO_SLOT) & valid
    num_slots = int(slots.sum())
    if num_slots != vector_lens.numel():
        raise ValueError(f"{num_slots} audio slots in the text but {vector_lens.numel()} clips; each slot needs one")

    widths = valid.long()  # how many positions each text position becomes: (B, L)
    widths[slots] = vector_lens.to(device)
    ends = widths.cumsum(1)
    starts = ends - widths
    lens = ends[:, -1] if L else input_lens
    Z = int(lens.max())
    offset = (Z - lens) if padding_side == "left" else torch.zeros_like(lens)
    row_start = torch.arange(B, device=device) * Z + offset

    flat = text_embeds.new_zeros(B * Z, D)
    text = valid & ~slots
    text_to = (starts + row_start[:, None])[text]
    flat = flat.index_copy(0, text_to, text_embeds[text])
    if num_slots:
        within = torch.arange(vectors.shape[1], device=device)
        held = within < vector_lens.to(device)[:, None]  # (A, W)
        audio_to = ((starts + row_start[:, None])[slots][:, None] + within)[held]
        flat = flat.index_copy(0, audio_to, vectors[held].to(flat.dtype))

    position = torch.arange(Z, device=device) - offset[:, None]
    mask = (position >= 0) & (position < lens[:, None])
    supervised = valid & (column >= prompt_lens[:, None])
    rows, columns = supervised.nonzero(as_tuple=True)
    return Spliced(
        inputs_embeds=flat.view(B, Z, D),
        attention_mask=mask,
        position_ids=position.clamp(min=0),
        target_rows=rows,
        target_positions=starts[rows, columns] + offset[rows],
        target_ids=input_ids[rows, columns],
    )


def batch_rows(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right pad id rows of different length: list of (L_i,) -> (B, L), (B,)."""
    lens = torch.tensor([row.numel() for row in rows])
    longest = int(lens.max())
    return torch.stack([pad(row, (0, longest - row.numel())) for row in rows]), lens
