"""Put audio vectors into the slots of the text, and find the supervised positions.

Letters: B rows, L text positions (slots count as one), A clips, W vectors per clip, D LLM width, Z spliced length.
Masks are computed from lengths; no id is ever compared with a pad id (Llama 3.1 has none, other LLMs share it with
eos).
"""

from typing import NamedTuple

import torch
from torch.nn.functional import pad

from nemo_desta.types import AUDIO_SLOT


class Places(NamedTuple):
    """Positions, masks and targets, which depend on ids and lengths alone.

    ``attention_mask`` (B, Z) bool, ``position_ids`` (B, Z).
    ``target_rows``, ``target_positions``, ``target_ids``: (N,) int64 each. Token ``target_ids[i]`` of row
    ``target_rows[i]`` is at ``target_positions[i]``; the hidden state one position earlier predicts it.
    ``text_mask``, ``slot_mask`` (B, L) bool; ``text_to``, ``slot_to``: (number of them,) position in the flat (B * Z)
    of each text token and of each clip's first vector, in reading order.
    """

    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    target_rows: torch.Tensor
    target_positions: torch.Tensor
    target_ids: torch.Tensor
    text_mask: torch.Tensor
    slot_mask: torch.Tensor
    text_to: torch.Tensor
    slot_to: torch.Tensor


class Spliced(NamedTuple):
    """The LLM's input: ``inputs_embeds`` (B, Z, D), and the first five of `Places`."""

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
        text_embeds: (B, L, D), embeddings of ``input_ids``; values at slots and padding are not read.
        input_ids: (B, L) int64, right padded. input_lens: (B,) prompt + target. prompt_lens: (B,) prompt alone.
        vectors: (A, W, D). vector_lens: (A,).
        padding_side: "right" for training, "left" for generation; the loss does not depend on it.

    Raises:
        ValueError: the number of slots is not the number of clips.
    """
    places = place(input_ids, input_lens, prompt_lens, vector_lens, padding_side=padding_side)
    B, Z = places.attention_mask.shape
    flat = text_embeds.new_zeros(B * Z, text_embeds.shape[-1])
    flat = flat.index_copy(0, places.text_to, text_embeds[places.text_mask])
    if vector_lens.numel():
        flat = put_vectors(flat, places.slot_to, vectors, vector_lens)
    return Spliced(flat.view(B, Z, -1), *places[:5])


def put_vectors(
    flat: torch.Tensor, first: torch.Tensor, vectors: torch.Tensor, vector_lens: torch.Tensor
) -> torch.Tensor:
    """Put each clip's vectors into ``flat`` (P, D), side by side from position ``first`` (A,) on.

    vectors: (A, W, D), converted to the dtype of ``flat``. vector_lens: (A,).
    """
    within = torch.arange(vectors.shape[1], device=flat.device)
    held = within < vector_lens.to(flat.device)[:, None]  # (A, W)
    return flat.index_copy(0, (first[:, None] + within)[held], vectors[held].to(flat.dtype))


def place(
    input_ids: torch.Tensor,
    input_lens: torch.Tensor,
    prompt_lens: torch.Tensor,
    vector_lens: torch.Tensor,
    *,
    padding_side: str = "right",
) -> Places:
    """Positions, masks and targets of `splice`, from ids and lengths alone.

    Raises:
        ValueError: the number of slots is not the number of clips.
    """
    B, L = input_ids.shape
    device = input_ids.device
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

    text = valid & ~slots
    flat_starts = starts + row_start[:, None]

    position = torch.arange(Z, device=device) - offset[:, None]
    mask = (position >= 0) & (position < lens[:, None])
    supervised = valid & (column >= prompt_lens[:, None])
    rows, columns = supervised.nonzero(as_tuple=True)
    return Places(
        attention_mask=mask,
        position_ids=position.clamp(min=0),
        target_rows=rows,
        target_positions=starts[rows, columns] + offset[rows],
        target_ids=input_ids[rows, columns],
        text_mask=text,
        slot_mask=slots,
        text_to=flat_starts[text],
        slot_to=flat_starts[slots],
    )


def batch_rows(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right pad id rows of different length: list of (L_i,) -> (B, L), (B,)."""
    lens = torch.tensor([row.numel() for row in rows])
    longest = int(lens.max())
    return torch.stack([pad(row, (0, longest - row.numel())) for row in rows]), lens
