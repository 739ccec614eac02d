"""Sampling whose random numbers belong to the row: equal seeds give equal answers, however rows are batched."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import LogitsProcessor

from nemo_desta.recipes.engines.base import Sampling


@dataclass(frozen=True)
class Draw:
    """How a token is drawn: temperature first, then the ``top_k`` likeliest (0: all), of them the smallest set that
    holds ``top_p`` of the probability, of them those with at least ``min_p`` of the likeliest one's probability.
    """

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    @classmethod
    def of(cls, sampling: Sampling) -> "Draw | None":
        """None when the likeliest token is wanted. ``sampling.temperature`` must be given."""
        if not sampling.temperature:
            return None
        return cls(sampling.temperature, sampling.top_p, sampling.top_k or 0)


class RowSampler(LogitsProcessor):
    """Draws each row's next token by its own random numbers and leaves only that token possible.

    ``seeds``: one per row. ``prompt_width``: length of the padded prompts, from which a row knows its step.
    """

    def __init__(self, draw: Draw, seeds: Sequence[int], max_new_tokens: int, prompt_width: int) -> None:
        self.draw = draw
        self.prompt_width = prompt_width
        numbers = [
            torch.rand(max_new_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            for seed in seeds
        ]
        self.numbers = torch.stack(numbers)  # (B, max_new_tokens)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``input_ids``: (B, L) so far; ``scores``: (B, V) logits of the next token."""
        exact = torch.float32 if scores.device.type == "mps" else torch.float64  # Metal has no float64
        if self.numbers.device != scores.device:
            self.numbers = self.numbers.to(scores.device, exact).clamp(max=1 - torch.finfo(exact).eps)
        probs = (scores.to(exact) / self.draw.temperature).softmax(-1)
        probs = self._truncate(probs)
        cumulative = probs.cumsum(-1)
        number = self.numbers[:, input_ids.shape[1] - self.prompt_width]
        token = torch.searchsorted(cumulative, (number * cumulative[:, -1])[:, None], right=True)
        token = token.clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, float("-inf")).scatter(-1, token, 0.0)

    def _truncate(self, probs: torch.Tensor) -> torch.Tensor:
        """``probs``: (B, V); the same with zeros where nothing may be drawn, not normalised."""
        draw = self.draw
        if 0 < draw.top_k < probs.shape[-1]:
            least = probs.topk(draw.top_k, dim=-1).values[:, -1:]
            probs = probs.masked_fill(probs < least, 0.0)
        if draw.top_p < 1:
            ranked, order = probs.sort(-1, descending=True)
            beyond = ranked.cumsum(-1) - ranked >= draw.top_p * ranked.sum(-1, keepdim=True)
            probs = probs.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)
        if draw.min_p > 0:
            probs = probs.masked_fill(probs < draw.min_p * probs.amax(-1, keepdim=True), 0.0)
        return probs
