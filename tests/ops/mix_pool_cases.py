"""Cases for mix_pool: ragged clips, an empty one, overlapping windows, NaN where nobody may read, loud channels.

Letters as in `nemo_desta.ops`: N layers, B clips, T frames, C width, P windows, K frames per window, M queries.
"""

import itertools
import math
import os
from dataclasses import dataclass

import torch

from nemo_desta.ops import reference
from nemo_desta.types import WindowTable

#: A GPU if there is one, unless the kernels are interpreted.
DEVICE = "cuda" if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1" else "cpu"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WIDTHS, LAYERS, FRAMES, QUERIES = (48, 768, 1280), (1, 4, 8), (1, 4, 5, 8, 17), (1, 2, 4)
OUTLIERS = (3, 17)  # channels a thousand times as loud as the rest, as real encoders have them
PARAMETERS = ("layer_weights", "norm_weight", "norm_bias", "query", "position_bias")


@dataclass(frozen=True)
class Case:
    """One shape; ``num_queries`` is not read by stack."""

    mode: str
    dtype: str
    width: int
    num_layers: int
    window_frames: int
    num_queries: int = 1

    def __str__(self) -> str:
        queries = f"-M{self.num_queries}" if self.mode == "attention" else ""
        return f"{self.mode}-{self.dtype}-C{self.width}-N{self.num_layers}-K{self.window_frames}{queries}"


def all_cases() -> list[Case]:
    """`few_cases`, and for attention every pair of values of two other knobs in each dtype."""
    attention = [
        Case("attention", dtype, *values) for dtype in DTYPES for values in pairwise(WIDTHS, LAYERS, FRAMES, QUERIES)
    ]
    return list(dict.fromkeys(few_cases() + attention))


def few_cases() -> list[Case]:
    """In each mode every pair of values of two knobs meets, dtype being a knob."""
    knobs = tuple(DTYPES), WIDTHS, LAYERS, FRAMES
    attention = [Case("attention", *values) for values in pairwise(*knobs, QUERIES)]
    # w2v-BERT's five layers; 1024 is the one width of a single piece (`nemo_desta.ops.kernels.rows`).
    attention.append(Case("attention", "bf16", 1024, 5, 8))
    return attention + [Case("stack", *values) for values in pairwise(*knobs)]


def pairwise(*knobs: tuple) -> list[tuple]:
    """Few combinations in which every two values of two knobs meet.

    Each step takes the combination with the most new pairs; of equal ones, the one with the smallest sizes.
    """

    def pairs(values: tuple) -> set:
        return set(itertools.combinations(enumerate(values), 2))

    combinations = list(itertools.product(*knobs))
    missing = set().union(*map(pairs, combinations))
    chosen = []
    while missing:
        best = max(combinations, key=lambda values: (len(pairs(values) & missing), -_size(values)))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


def _size(values: tuple) -> int:
    return math.prod(value for value in values if isinstance(value, int))


def make_inputs(case: Case, seed: int = 0) -> tuple[list[torch.Tensor], dict[str, torch.Tensor], WindowTable]:
    """Layers (B, T, C) cut from longer ones, parameters in float32, windows of three clips, the middle one empty."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    K, C = case.window_frames, case.width
    lens = (K + 3, 0, 2)
    T = max(lens)
    layers = []
    for _ in range(case.num_layers):
        layer = normal(3, T + 2, C)
        layer[..., OUTLIERS] *= 1e3
        layer = layer.to(DTYPES[case.dtype])
        for clip, frames in enumerate(lens):
            layer[clip, frames:] = float("nan")
        layers.append(layer.to(DEVICE)[:, :T])
    table = [0, 2, K, 2 * T], [K, min(K, 5), 1, min(K, 2)], [3, 0, 1]
    windows = WindowTable(*(torch.tensor(column, device=DEVICE) for column in table))
    parameters = {
        "layer_weights": normal(case.num_layers).softmax(0),
        "norm_weight": 1 + 0.1 * normal(C),
        "norm_bias": normal(C),
        "query": normal(case.num_queries, C),
        "position_bias": normal(case.num_queries, K),
    }
    return layers, {name: value.float().to(DEVICE) for name, value in parameters.items()}, windows


def run_and_grad(function, layers, parameters, windows, mode, grad) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Output, and the gradient of every parameter that takes part, for the output's gradient ``grad``."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
    out = function(layers, *leaves.values(), windows, mode=mode)
    out.backward(grad.to(out.dtype))
    return out.detach(), {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def in_float64(layers, parameters, windows, mode, grad) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The reference on the same numbers in float64."""
    layers = [layer.double() for layer in layers]
    parameters = {name: value.double() for name, value in parameters.items()}
    return run_and_grad(reference.mix_pool, layers, parameters, windows, mode, grad.double())


def output_grad(case: Case, seed: int = 1) -> torch.Tensor:
    """A gradient of the output (P, M or K, C), rounded to the case's dtype."""
    rows = case.num_queries if case.mode == "attention" else case.window_frames
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, rows, case.width, generator=generator).to(DEVICE, DTYPES[case.dtype])


def relative_rms(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the error over that of what is expected."""
    return ((found.double() - expected.double()).square().mean() / expected.double().square().mean()).sqrt().item()
