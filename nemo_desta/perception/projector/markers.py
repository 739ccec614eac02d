"""Two learned vectors that mark the begin and end of each clip's vectors, for any projector.

Letters: B clips, W vectors of the longest clip, D LLM width.
"""

import torch
from torch import nn


class Markers(nn.Module):
    """Learned start and end vectors, initialised at random with RMS ``rms`` (1 in ALARM)."""

    count = 2

    def __init__(self, size: int, rms: float | None = None):
        super().__init__()
        self.start = nn.Parameter(torch.randn(size) * (rms or 1.0))
        self.end = nn.Parameter(torch.randn(size) * (rms or 1.0))

    def forward(self, vectors: torch.Tensor, lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """vectors (B, W, D), lens (B,) -> (B, W + 2, D), lens + 2; the end marker follows each clip's last vector."""
        start = self.start.to(vectors.dtype).expand(len(vectors), 1, -1)
        marked = torch.cat([start, vectors, torch.zeros_like(start)], dim=1)
        position = torch.arange(marked.shape[1], device=lens.device)
        is_end = position == lens[:, None] + 1
        return torch.where(is_end[..., None], self.end.to(vectors.dtype), marked), lens + self.count
