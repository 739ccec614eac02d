"""How one answer is drawn, and the drawing itself.

What is not asked for comes from the LLM's own generation config, as its authors recommend. Letters: B rows, V
vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nemo_desta.config import check_keys
from nemo_desta.errors import ConfigError

if TYPE_CHECKING:
    from transformers import GenerationConfig, LogitsProcessorList

#: Tokens of an answer when nobody says how many, thinking included.
DEFAULT_NEW_TOKENS = 512


@dataclass(frozen=True)
class Sampling:
    """Settings of one answer.

    ``max_new_tokens``: thinking included. ``temperature``: 0 takes the likeliest token. ``top_k`` 0, ``top_p`` 1 and
    ``min_p`` 0 switch each filter off. ``repetition_penalty``: over what was written so far. ``seed``: of this
    answer's random numbers, whatever else is in the batch; None draws one. ``stop``: texts that end the answer (not
    the thinking), left out of it. ``max_thinking_tokens``: a longer thought is brought to its end (budget forcing).
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


def resolve_sampling(defaults: "GenerationConfig", **given: Any) -> Sampling:
    """Settings from what the caller gave, completed by the LLM's generation config.

    Beside the fields of `Sampling`, ``do_sample=False`` asks for the likeliest tokens; ``stop`` may be one text or a
    list. ``None`` counts as not given. The config's filters apply only where it samples itself.

    Raises:
        ConfigError: an unknown name, or a value out of its range.
    """
    check_keys(given, [*(field.name for field in fields(Sampling)), "do_sample"], "generation")
    given = {name: value for name, value in given.items() if value is not None}
    samples = given.pop("do_sample", None)
    settings: dict[str, Any] = {}
    if defaults.repetition_penalty is not None:
        settings["repetition_penalty"] = float(defaults.repetition_penalty)
    if defaults.do_sample:
        own = {name: getattr(defaults, name) for name in ("temperature", "top_p", "top_k", "min_p")}
        settings |= {name: value for name, value in own.items() if value is not None}
    if samples and not settings.get("temperature"):
        settings["temperature"] = 1.0
    settings |= given
    if samples is False:
        settings["temperature"] = 0.0
    stop = settings.get("stop", ())
    settings["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    return Sampling(**settings)


class Drawer:
    """Draws one row's tokens: its filters and its random numbers, which no other row shares."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self.sampling = sampling
        self.processors = _processors(sampling)
        self.generator: torch.Generator | None = None
        if not sampling.greedy:
            self.generator = torch.Generator(device)
            if sampling.seed is None:
                self.generator.seed()
            else:
                self.generator.manual_seed(sampling.seed)

    @property
    def plain(self) -> bool:
        """Whether the token is the argmax of the logits as they are."""
        return self.sampling.greedy and not self.processors

    def draw(self, logits: Tensor, written: Sequence[int]) -> Tensor:
        """logits (V,) float32, the ids ``written`` so far -> the next id (1,)."""
        scores = self.processors(torch.tensor([list(written)], device=logits.device), logits[None])
        if self.generator is None:
            return scores.argmax(dim=-1)
        return torch.multinomial(scores.softmax(dim=-1), 1, generator=self.generator)[0]


def draw(logits: Tensor, drawers: Sequence[Drawer], written: Sequence[Sequence[int]]) -> list[int]:
    """logits (B, V) of any dtype -> the next id of each row, in one transfer to the CPU."""
    logits = logits.float()
    ids = logits.argmax(dim=-1)
    for row, drawer in enumerate(drawers):
        if not drawer.plain:
            ids[row] = drawer.draw(logits[row], written[row])[0]
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
