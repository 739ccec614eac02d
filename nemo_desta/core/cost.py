"""FLOPs of training through a frozen LLM, and the time and money that they mean at an assumed MFU.

A multiplication and an addition are two FLOPs. Matrix products, convolutions and attention count. A frozen linear
layer needs no gradient of its weight, so a backward pass costs as much as a forward pass and not twice as much.
docs/explain/memory_planner.md has the formulas and their sources.

Letters: Z positions of a row, A query heads, H head size.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PretrainedConfig

from nemo_desta.config import nearest
from nemo_desta.errors import ConfigError

#: Shares of a GPU's peak that training is assumed to use; docs/explain/memory_planner.md has what others measured.
DENSE_MFU, EXPERTS_MFU = 0.35, 0.2
#: Passes over a frozen linear layer: forward, and the gradient of its input.
FROZEN, RECOMPUTED = 2, 3
EMBEDDINGS, HEAD = ("embed_tokens.weight",), ("lm_head.weight",)
#: Names of the number of experts in configs.
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")


class GPU(NamedTuple):
    """``tflops``: dense bfloat16 peak of the data sheet. ``memory``: GiB. ``reported``: part of torch's name of it."""

    tflops: float
    memory: float
    reported: str


#: Names by which `find_gpu` recognises a longer one come first.
GPUS = {
    "a100": GPU(312, 80, "A100"),
    "l40s": GPU(362, 45, "L40S"),
    "l4": GPU(121, 22, "NVIDIA L4"),
    "h100-pcie": GPU(756, 80, "H100 PCIe"),
    "h100": GPU(989, 80, "H100"),
    "h200": GPU(989, 140, "H200"),
    "b200": GPU(2250, 178, "B200"),
}


def find_gpu(reported: str) -> str | None:
    """The name in `GPUS` of what ``torch.cuda.get_device_name`` reports."""
    return next((name for name, gpu in GPUS.items() if gpu.reported in reported), None)


@dataclass(frozen=True)
class Flops:
    """Of a micro-batch, with backward. ``layers``: of all layers of the LLM, equal in each; ``head``: at targets."""

    layers: float
    head: float
    encoders: float
    projector: float

    @property
    def total(self) -> float:
        return self.layers + self.head + self.encoders + self.projector

    def by_stage(self, layers: Sequence[int]) -> list[float]:
        """Of each pipeline stage: the encoders and the projector are on the first, the head is on the last."""
        found = [self.layers * count / sum(layers) for count in layers]
        found[0] += self.encoders + self.projector
        found[-1] += self.head
        return found

    def __str__(self) -> str:
        parts = {"LLM": self.layers + self.head, "encoders": self.encoders, "projector": self.projector}
        shares = ", ".join(f"{name} {part / self.total:.1%}" for name, part in parts.items())
        return f"{_amount(self.total)} ({shares})"


def llm_flops(
    config: PretrainedConfig,
    per_position: float,
    *,
    rows: int | float,
    length: int | float,
    targets: int | float,
    lora: int = 0,
    recompute: bool = False,
    encoders: float = 0,
    projector: float = 0,
) -> Flops:
    """Of ``rows`` of ``length`` positions each, ``targets`` of which are supervised in all.

    Args:
        per_position: `position_flops`. lora: parameters of LoRA. recompute: the layers run forward once more.
        encoders, projector: FLOPs of a micro-batch's clips.
    """
    passes = RECOMPUTED if recompute else FROZEN
    forward = rows * length * per_position
    # the gradients of queries, keys, values and weights: four products to the forward pass's two
    attention = rows * attention_flops(config, length) * (passes + 1)
    adapters = rows * length * 2 * lora * (passes + 1)  # trained: a gradient of the weight as well
    head = 2 * targets * config.hidden_size * config.vocab_size * FROZEN
    return Flops(passes * forward + attention + adapters, head, encoders, projector)


def position_flops(weights: Iterable[tuple[str, Sequence[int]]], config: PretrainedConfig) -> float:
    """Of a position's forward pass through all layers, without attention itself: a product with each active weight.

    Args:
        weights: names and shapes as in Hugging Face models. Of experts a position visits ``num_experts_per_tok``.
    """
    experts = num_experts(config)
    active = getattr(config, "num_experts_per_tok", None) or 1
    total = 0.0
    for name, shape in weights:
        if len(shape) < 2 or name.endswith((*EMBEDDINGS, *HEAD)):
            continue
        share = active / experts if experts and ".experts." in name else 1
        total += 2 * math.prod(shape) * share
    return total


def default_mfu(config: PretrainedConfig) -> float:
    """What is assumed for an LLM of this kind."""
    return EXPERTS_MFU if num_experts(config) else DENSE_MFU


def num_experts(config: PretrainedConfig) -> int:
    """Experts of a mixture of experts, 0 for a dense LLM."""
    return next((found for key in EXPERT_KEYS if (found := getattr(config, key, None))), 0)


def attention_flops(config: PretrainedConfig, length: int | float) -> float:
    """Of a row's forward pass through causal attention, all layers: scores, and the mix of values."""
    heads = getattr(config, "num_attention_heads", None) or 0
    head_size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None) or length
    pairs = {"full_attention": length * length / 2, "sliding_attention": _window_pairs(length, window)}
    return sum(pairs.get(kind, 0) for kind in kinds) * 4 * heads * head_size


@dataclass(frozen=True)
class Speed:
    """What a GPU of `GPUS` is assumed to reach."""

    gpu: str
    mfu: float

    def __post_init__(self) -> None:
        if self.gpu not in GPUS:
            raise ConfigError(f"unknown GPU '{self.gpu}'.{nearest(self.gpu, GPUS)}")
        if not 0 < self.mfu <= 1:
            raise ConfigError(f"an MFU is a share of the GPU's peak, above 0 and at most 1, found {self.mfu:g}")

    def secs(self, flops: float) -> float:
        """For ``flops`` on one GPU."""
        return flops / (GPUS[self.gpu].tflops * 1e12 * self.mfu)

    def step_secs(self, stages: Sequence[float], num_micro_batches: int, gpus_per_stage: int) -> float:
        """Of a step of micro-batches that cost ``stages`` FLOPs on each pipeline stage: the slowest sets the pace."""
        return (num_micro_batches + len(stages) - 1) * self.secs(max(stages) / gpus_per_stage)

    def __str__(self) -> str:
        return f"MFU {self.mfu:g} of {self.gpu} ({GPUS[self.gpu].tflops:,.0f} TFLOP/s)"


def rate_text(rate: float) -> str:
    """Hours of audio per GPU-hour, in about two digits."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def _window_pairs(length: float, window: float) -> float:
    inside = min(length, window)
    return inside * length - inside * inside / 2


def _amount(flops: float) -> str:
    for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if flops >= size:
            return f"{flops / size:,.1f} {unit}"
    return f"{flops / 1e6:,.1f} MFLOP"
