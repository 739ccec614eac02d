"""How one answer is sampled, and the sampler itself.

Settings that the caller leaves out come from the LLM's own generation config. Letters: B rows, V vocabulary.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nemo_desta.config import check_keys
from nemo_desta.errors import ConfigError

if TYPE_CHECKING:
    from transformers import GenerationConfig, LogitsProcessorList

#: Default limit of new tokens per answer, thinking included.
DEFAULT_NEW_TOKENS = 512
#: Random numbers that a row draws from its generator at a time.
NUMBERS_PER_DRAW = 64


@dataclass(frozen=True)
class Sampling:
    """Settings of one answer.

    ``max_new_tokens``: thinking included. ``temperature``: 0 takes the likeliest token. ``top_k`` 0, ``top_p`` 1 and
    ``min_p`` 0 switch each filter off. ``repetition_penalty``: over the tokens generated so far. ``seed``: of this
    answer's random numbers, which do not depend on the batch; None draws a seed. ``stop``: texts that end the answer
    (not the thinking) and are left out of it. ``max_thinking_tokens``: budget forcing closes a longer thought.
    """

    max_new_tokens: int = DEFAULT_NEW_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_thinking_tokens: int | None = None

    def __post_init__(self) -> None:
        _check(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "at least 1")
        _check(0.0 <= self.temperature < float("inf"), "temperature", self.temperature, "0 or more")
        _check(0.0 < self.top_p <= 1.0, "top_p", self.top_p, "above 0 and at most 1")
        _check(self.top_k >= 0, "top_k", self.top_k, "0 (off) or more")
        _check(0.0 <= self.min_p < 1.0, "min_p", self.min_p, "from 0 to below 1")
        _check(0.0 < self.repetition_penalty < float("inf"), "repetition_penalty", self.repetition_penalty, "above 0")
        _check(all(self.stop) and not isinstance(self.stop, str), "stop", self.stop, "a tuple of non-empty texts")
        if self.max_thinking_tokens is not None:
            _check(self.max_thinking_tokens >= 1, "max_thinking_tokens", self.max_thinking_tokens, "at least 1")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


def own_sampling(config: "GenerationConfig") -> dict[str, Any]:
    """Temperature and filters of an LLM's generation config, as fields of `Sampling`; empty if it does not sample.

    Unset values become transformers' own defaults. Its versions differ in when they fill them in.
    """
    if not config.do_sample:
        return {}
    fallbacks = {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "min_p": 0.0}
    own = {name: getattr(config, name) for name in fallbacks}
    return {name: fallbacks[name] if value is None else value for name, value in own.items()}


def resolve_sampling(defaults: "GenerationConfig", **given: Any) -> Sampling:
    """Settings from what the caller gave, completed by the LLM's generation config.

    Beside the fields of `Sampling`, ``do_sample=False`` asks for the likeliest tokens; ``stop`` may be one text or a
    list. ``None`` counts as not given. The config's filters apply only if the config itself samples.

    Raises:
        ConfigError: an unknown name, or a value out of its range.
    """
    check_keys(given, [*(field.name for field in fields(Sampling)), "do_sample"], "generation")
    given = {name: value for name, value in given.items() if value is not None}
    samples = given.pop("do_sample", None)
    settings = own_sampling(defaults)
    if defaults.repetition_penalty is not None:
        settings["repetition_penalty"] = float(defaults.repetition_penalty)
    if samples and not settings.get("temperature"):
        settings["temperature"] = 1.0
    settings |= given
    if samples is False:
        settings["temperature"] = 0.0
    stop = settings.get("stop", ())
    settings["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    return Sampling(**settings)


def vllm_sampling(sampling: Sampling) -> dict[str, Any]:
    """The arguments of ``vllm.SamplingParams`` that a `Sampling` stands for."""
    same = {key: getattr(sampling, key) for key in ("temperature", "top_p", "min_p", "repetition_penalty", "seed")}
    # top_k -1: all tokens, in old versions and new ones
    return {**same, "top_k": sampling.top_k or -1, "max_tokens": sampling.max_new_tokens}


class Drawer:
    """One row's filters and random numbers. Equal seeds give equal numbers on every device and in every batch."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.processors = _processors(sampling)
        self._generator = torch.Generator()
        self._numbers: list[float] = []
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def number(self) -> float:
        """The next uniform number from [0, 1)."""
        if not self._numbers:
            numbers = torch.rand(NUMBERS_PER_DRAW, generator=self._generator, dtype=torch.float64)
            self._numbers = numbers.tolist()[::-1]
        return self._numbers.pop()


def draw(logits: Tensor, drawers: Sequence[Drawer], written: Sequence[Sequence[int]]) -> list[int]:
    """logits (B, V) of any dtype and the ids ``written`` by each row so far -> the next id of each row.

    Rows with equal filters are drawn together. All ids reach the CPU in one transfer.
    """
    ids = logits.argmax(dim=-1)
    groups: dict[Hashable, list[int]] = {}
    for row, drawer in enumerate(drawers):
        how = drawer.sampling
        if drawer.processors or not how.greedy:
            together = how.repetition_penalty == 1.0  # the penalty depends on the row's own ids
            key = (how.temperature, how.top_p, how.top_k, how.min_p) if together else row
            groups.setdefault(key, []).append(row)
    exact = torch.float32 if logits.device.type == "mps" else torch.float64  # Metal has no float64
    for rows in groups.values():
        first = drawers[rows[0]]
        before = torch.tensor([written[row] for row in rows[:1]], dtype=torch.int64, device=logits.device)
        scores = first.processors(before, logits[rows].to(exact))
        if first.sampling.greedy:
            ids[rows] = scores.argmax(dim=-1)
            continue
        cumulative = scores.softmax(dim=-1).cumsum(dim=-1)  # (rows, V)
        numbers = torch.tensor([[drawers[row].number()] for row in rows], dtype=torch.float64)
        numbers = numbers.to(logits.device, exact).clamp(max=1 - torch.finfo(exact).eps)
        chosen = torch.searchsorted(cumulative, numbers * cumulative[:, -1:], right=True)[:, 0]
        ids[rows] = chosen.clamp(max=logits.shape[-1] - 1)
    return ids.tolist()


def _processors(sampling: Sampling) -> "LogitsProcessorList":
    """Transformers' own filters, in the order of its `generate`."""
    from transformers.generation import logits_process as hf

    chosen: list[Any] = []
    if sampling.repetition_penalty != 1.0:
        chosen.append(hf.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if not sampling.greedy:
        if sampling.temperature != 1.0:
            chosen.append(hf.TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            chosen.append(hf.TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1.0:
            chosen.append(hf.TopPLogitsWarper(sampling.top_p))
        if sampling.min_p:
            chosen.append(hf.MinPLogitsWarper(sampling.min_p))
    return hf.LogitsProcessorList(chosen)


def _check(fine: bool, name: str, value: Any, rule: str) -> None:
    if not fine:
        raise ConfigError(f"generation.{name} is {value!r}; it must be {rule}")
