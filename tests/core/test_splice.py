"""Audio vectors land at their slots and labels are found by position alone."""

import pytest
import torch

from nemo_desta.core.splice import splice
from nemo_desta.types import AUDIO_SLOT as A

EMBEDS = torch.arange(8.0).view(2, 4, 1) + 1  # 1..4 and 5..8
VECTORS = -torch.arange(6.0).view(2, 3, 1) - 1  # -1..-3 and -4..-6


def spliced(side):
    ids = torch.tensor([[5, A, 6, 7], [A, 8, 0, 0]])
    return splice(
        EMBEDS,
        ids,
        torch.tensor([4, 2]),
        torch.tensor([2, 1]),
        vectors=VECTORS,
        vector_lens=torch.tensor([2, 3]),
        padding_side=side,
    )


def test_splice_puts_vectors_in_reading_order_when_right_padded():
    out = spliced("right")
    assert out.inputs_embeds[..., 0].tolist() == [[1, -1, -2, 3, 4], [-4, -5, -6, 6, 0]]
    assert out.attention_mask.tolist() == [[True] * 5, [True] * 4 + [False]]
    assert out.position_ids.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert out.target_positions.tolist() == [3, 4, 3]
    assert out.target_ids.tolist() == [6, 7, 8]


def test_splice_shifts_rows_and_targets_when_left_padded():
    out = spliced("left")
    assert out.inputs_embeds[..., 0].tolist() == [[1, -1, -2, 3, 4], [0, -4, -5, -6, 6]]
    assert out.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 0, 1, 2, 3]]
    assert out.target_positions.tolist() == [3, 4, 4]
    assert out.target_ids.tolist() == [6, 7, 8]


def test_splice_supervises_a_target_that_equals_the_pad_id():
    out = splice(
        EMBEDS,
        torch.tensor([[5, 0, 0, 0], [5, 6, 0, 0]]),
        torch.tensor([3, 4]),
        torch.tensor([1, 2]),
        vectors=torch.zeros(0, 0, 1),
        vector_lens=torch.zeros(0, dtype=torch.int64),
    )
    assert out.target_ids.tolist() == [0, 0, 0, 0]
    assert out.target_rows.tolist() == [0, 0, 1, 1]


def test_splice_names_the_counts_when_slots_and_clips_differ():
    with pytest.raises(ValueError, match="1 audio slots in the text but 2 clips"):
        splice(
            EMBEDS[:1],
            torch.tensor([[5, A, 6, 7]]),
            torch.tensor([4]),
            torch.tensor([2]),
            vectors=VECTORS,
            vector_lens=torch.tensor([2, 3]),
        )


def test_gradients_reach_vectors_but_not_their_padding():
    vectors = VECTORS.clone().requires_grad_()
    ids = torch.tensor([[5, A, 6, 7], [A, 8, 0, 0]])
    out = splice(
        EMBEDS,
        ids,
        torch.tensor([4, 2]),
        torch.tensor([2, 1]),
        vectors=vectors,
        vector_lens=torch.tensor([2, 3]),
    )
    out.inputs_embeds.sum().backward()
    assert vectors.grad[..., 0].tolist() == [[1, 1, 0], [1, 1, 1]]
