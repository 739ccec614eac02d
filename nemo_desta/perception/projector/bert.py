"""BERT-style decoder layers (post-norm) that let learned queries read audio frames; shared by both Q-Formers.

It is not transformers' BERT, so that names, masks and dropout do not change with the installed version.
Letters: P sequences, Q queries, K frames, C query width, E frame width.
"""

import torch
import torch.nn.functional as F
from torch import nn

NORM_EPS = 1e-12  # BERT's


def default_heads(width: int) -> int:
    """Heads of 64 channels, as in Whisper and BERT of every size.

    Raises:
        ValueError: a width that is no multiple of 64.
    """
    if width % 64:
        raise ValueError(f"width {width} is no multiple of 64, so heads of 64 channels do not fit; give num_heads")
    return width // 64


class QueryDecoderLayer(nn.Module):
    """Self-attention among the queries, cross-attention to the frames, feed-forward; a norm after each residual."""

    def __init__(
        self, width: int, num_heads: int, feed_forward_size: int, dropout: float, context_width: int | None = None
    ):
        """``context_width``: E, C if None."""
        super().__init__()
        self.self_attention = AttentionBlock(width, width, num_heads, dropout)
        self.cross_attention = AttentionBlock(width, context_width or width, num_heads, dropout)
        self.feed_forward = FeedForwardBlock(width, feed_forward_size, dropout)

    def forward(self, queries: torch.Tensor, frames: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """queries (P, Q, C), frames (P, K, E), valid (P, K) bool or None for all -> (P, Q, C)."""
        queries = self.self_attention(queries, queries)
        return self.feed_forward(self.cross_attention(queries, frames, valid))


class Attention(nn.Module):
    """Multi-head attention of queries (C channels) to frames (E channels)."""

    def __init__(self, width: int, context_width: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} does not split into {num_heads} heads of equal size")
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(context_width, width)
        self.value = nn.Linear(context_width, width)
        self.output = nn.Linear(width, width)

    def attend(self, queries: torch.Tensor, frames: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """queries (P, Q, C) read frames (P, K, E) where valid (P, K) bool, None for all -> (P, Q, C)."""
        attended = F.scaled_dot_product_attention(
            self._heads(self.query(queries)),
            self._heads(self.key(frames)),
            self._heads(self.value(frames)),
            attn_mask=None if valid is None else valid[:, None, None],
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.output(attended.transpose(1, 2).flatten(2))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (P, L, C) -> (P, heads, L, C / heads)


class AttentionBlock(Attention):
    """Attention, dropout, residual, norm."""

    def __init__(self, width: int, context_width: int, num_heads: int, dropout: float):
        super().__init__(width, context_width, num_heads, dropout)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, queries: torch.Tensor, frames: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """queries (P, Q, C) read frames (P, K, E) where valid (P, K) -> (P, Q, C)."""
        return self.norm(queries + F.dropout(self.attend(queries, frames, valid), self.dropout, self.training))


class FeedForwardBlock(nn.Module):
    """Linear, GELU, Linear, dropout, residual, norm."""

    def __init__(self, width: int, hidden_size: int, dropout: float):
        super().__init__()
        self.up = nn.Linear(width, hidden_size)
        self.down = nn.Linear(hidden_size, width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) -> (..., C)."""
        return self.norm(x + self.dropout(self.down(F.gelu(self.up(x)))))
