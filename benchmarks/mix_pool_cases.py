"""What `mix_pool` is measured on: shapes, random inputs, and the fewest bytes that they oblige anyone to move.

Letters: N encoder layers, B clips, T frames, C encoder width, P windows of the batch, K frames of the longest window,
M queries.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch

from nemo_desta.types import WindowTable

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FRAME_RATE = 50
MIN_SECS, MAX_SECS = 2, 30  # of ragged clips, uniform


@dataclasses.dataclass(frozen=True)
class Case:
    """One shape; the defaults are Whisper-large-v3, four layers, 12.5 vectors per second."""

    mode: str = "attention"
    B: int = 16
    N: int = 4
    K: int = 4
    M: int = 1
    C: int = 1280
    ragged: bool = False
    T: int = 1500
    dtype: str = "bf16"

    def __str__(self) -> str:
        lengths = "ragged" if self.ragged else "full"
        return f"{self.mode}-{self.dtype}-B{self.B}xT{self.T}-N{self.N}-K{self.K}-M{self.M}-C{self.C}-{lengths}"


class Inputs(NamedTuple):
    """Frozen layers (B, T, C), leaves that want a gradient, window table, and a gradient of the output."""

    layers: list[torch.Tensor]
    parameters: dict[str, torch.Tensor]
    windows: WindowTable
    grad: torch.Tensor


def default_cases(quick: bool = False) -> list[Case]:
    """One knob turned at a time from the defaults, and the corners that matter; ``quick``: the four that tell most."""
    few = [Case(), Case(K=8), Case(ragged=True), Case(mode="stack")]
    if quick:
        return few
    turned = [Case(B=4), Case(N=1), Case(N=8), Case(M=4), Case(C=768), Case(N=8, K=8, M=4)]
    return few + turned + [Case(C=768, K=8, ragged=True), Case(mode="stack", ragged=True)]


def all_cases() -> list[Case]:
    """The whole product; hours with torch.compile."""
    knobs = itertools.product((4, 16), (1, 4, 8), (4, 8), (768, 1280), (False, True))
    return [
        Case(mode, B, N, K, M, C, ragged)
        for B, N, K, C, ragged in knobs
        for mode, M in (("attention", 1), ("attention", 4), ("stack", 1))
    ]


def clip_frames(case: Case, seed: int = 0) -> list[int]:
    """Valid frames of each clip."""
    if not case.ragged:
        return [case.T] * case.B
    generator = torch.Generator().manual_seed(seed)
    shortest = min(case.T, MIN_SECS * FRAME_RATE)
    longest = min(case.T, MAX_SECS * FRAME_RATE)
    return torch.randint(shortest, longest + 1, (case.B,), generator=generator).tolist()


def make_inputs(case: Case, device: torch.device, seed: int = 0) -> Inputs:
    """Fresh random numbers, never zeros, which memory and cache compress on some devices."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    starts, counts, lens = [], [], []
    for clip, frames in enumerate(clip_frames(case, seed)):
        first = range(0, frames, case.K)
        starts += [clip * case.T + start for start in first]
        counts += [min(case.K, frames - start) for start in first]
        lens.append(len(first))
    windows = WindowTable(*(torch.tensor(column, device=device) for column in (starts, counts, lens)))
    dtype = DTYPES[case.dtype]
    parameters = {
        "layer_weights": normal(case.N).softmax(0),
        "norm_weight": 1 + 0.1 * normal(case.C),
        "norm_bias": normal(case.C),
        "query": normal(case.M, case.C),
        "position_bias": normal(case.M, case.K),
    }
    return Inputs(
        [normal(case.B, case.T, case.C).to(dtype) for _ in range(case.N)],
        {name: value.requires_grad_() for name, value in parameters.items()},
        windows,
        normal(len(starts), case.M if case.mode == "attention" else case.K, case.C).to(dtype),
    )


def states_bytes(case: Case) -> int:
    """The layers, padding included."""
    return case.N * case.B * case.T * case.C * DTYPES[case.dtype].itemsize


def minimal_bytes(case: Case, seed: int = 0) -> int:
    """Of one direction: valid frames of every layer read once, the output (or its gradient) and the pooled vectors.

    The vectors are kept in float32 and cross memory once per direction; "stack" keeps none. Numbers per frame are left
    out: a thousandth.
    """
    frames = clip_frames(case, seed)
    size = DTYPES[case.dtype].itemsize
    windows = sum(-(-count // case.K) for count in frames)
    rows, kept = (case.M, 4) if case.mode == "attention" else (case.K, 0)
    return sum(frames) * case.N * case.C * size + windows * rows * case.C * (size + kept)


def input_sets(case: Case, device: torch.device, cache_bytes: int) -> Iterator[Inputs]:
    """As many as a cache cannot remember: one, or enough to hold three times its size, at most eight."""
    enough = min(8, -(-3 * cache_bytes // states_bytes(case)))
    for seed in range(max(1, enough)):
        inputs = make_inputs(case, device, seed=0 if case.ragged else seed)
        if case.ragged and seed:  # the same lengths, other numbers
            fresh = torch.Generator(device).manual_seed(seed)
            for layer in inputs.layers:
                layer.normal_(generator=fresh)
        yield inputs
