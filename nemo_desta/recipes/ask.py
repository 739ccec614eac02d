"""Prompts the LLM about one description: the wording of the request, the thinking budget, unusable answers."""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from nemo_desta.core.thinking import ThinkFormat
from nemo_desta.recipes.engines.base import Engine, Generation, Request, SamplingConfig
from nemo_desta.recipes.items import Rejection
from nemo_desta.recipes.prompts.prompt import Prompt
from nemo_desta.recipes.think_budget import generate_with_budget

#: DeSTA2.5-Audio's wording: the description, then the prompt below it.
TEMPLATE = "{description}\n{prompt}"
#: An LLM's opinion of a finished row.
Judge = Callable[..., Awaitable[Rejection | None]]


@dataclass(frozen=True)
class Answerer:
    """Prompts the LLM with a description and a prompt.

    ``template`` holds ``{description}`` and ``{prompt}``. ``system``: a system message; an empty
    one switches off a system prompt that the LLM's chat template adds. ``max_thinking_tokens``: of a
    reasoning LLM (``think``); a longer thought is closed and the answer is forced (budget forcing in two passes).
    None: only ``sampling.max_new_tokens`` limits thought and answer. ``max_new_tokens_by_kind``: lower limits by the
    format or kind of the prompt; a reasoning LLM has none, since its thoughts count as well.
    """

    engine: Engine
    sampling: SamplingConfig
    template: str = TEMPLATE
    system: str | None = None
    max_thinking_tokens: int | None = None
    think: ThinkFormat | None = None
    max_new_tokens_by_kind: Mapping[str, int] | None = None

    async def __call__(self, description: str, prompt: Prompt, *, seed: int) -> Generation:
        """The raw answer."""
        messages = request_messages(description, prompt.prompt, template=self.template, system=self.system)
        request = Request(messages, self.sampling_for(prompt), seed)
        if self.max_thinking_tokens is None or self.think is None:
            return await self.engine.generate(request)
        return await generate_with_budget(
            self.engine,
            request,
            max_thinking_tokens=self.max_thinking_tokens,
            max_new_tokens=self.sampling.max_new_tokens,
            format=self.think,
        )

    def sampling_for(self, prompt: Prompt) -> SamplingConfig:
        """``sampling`` with the limit of the prompt's format, or else of its kind."""
        limits = {} if self.think is not None else self.max_new_tokens_by_kind or {}
        names = [prompt.kind] if prompt.constraint is None else [prompt.constraint.name, prompt.kind]
        limit = next((limits[name] for name in names if name in limits), self.sampling.max_new_tokens)
        return replace(self.sampling, max_new_tokens=min(limit, self.sampling.max_new_tokens))


def request_messages(
    description: str, prompt: str, *, template: str = TEMPLATE, system: str | None = None
) -> list[dict[str, str]]:
    """The messages that the LLM gets."""
    values = {"{description}": description, "{prompt}": prompt}
    content = re.sub(r"\{(description|prompt)\}", lambda place: values[place[0]], template)
    content = content if prompt else content.strip("\n")  # a spoken question without a passage
    return [
        *([{"role": "system", "content": system}] if system is not None else []),
        {"role": "user", "content": content},
    ]


def first_problem(answer: Generation) -> Rejection | None:
    """Why an answer is unusable before any gate checks the row; None if it is usable."""
    if answer.error is not None:
        return Rejection("LLM error", answer.error)
    return None if answer.text.strip() else Rejection("empty", "the LLM generated no text")
