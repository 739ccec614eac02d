"""Masks from lengths: which positions of a padded batch belong to a clip."""

import torch


def is_valid(batch: torch.Tensor, lens: torch.Tensor) -> torch.Tensor:
    """(B, T) bool: the positions of a batch (B, T, ...) inside each clip's length."""
    return torch.arange(batch.shape[1], device=lens.device) < lens[:, None]


def zero_beyond(batch: torch.Tensor, lens: torch.Tensor) -> torch.Tensor:
    """The batch (B, T, ...) with zeros beyond each clip's length, also where it was NaN."""
    valid = is_valid(batch, lens)
    return torch.where(valid.view(*valid.shape, *[1] * (batch.dim() - 2)), batch, batch.new_zeros(()))
