"""Think blocks: who opens them, a raw answer taken apart and put together again, thinking on a budget.

A raw answer is what continues the generation prompt. Reasoning LLMs differ in who writes the opening tag: the template
(then the answer begins inside the thought) or the LLM.
"""

import random
from dataclasses import dataclass, replace
from typing import NamedTuple

from nemo_desta.data.prompting import PromptBuilder
from nemo_desta.recipes.engines.base import Engine, EngineError, Generation, Request

#: What a thought that ran out of its budget is made to end with.
CUT_SENTENCE = "My time for thinking is over, so I give my answer now from what I have so far."


@dataclass(frozen=True)
class ThinkTags:
    """The two tags around a thought."""

    open: str = "<think>"
    close: str = "</think>"

    def __post_init__(self) -> None:
        if not self.open.strip() or not self.close.strip() or self.open == self.close:
            raise ValueError(f"think tags must be two different texts, found {self.open!r} and {self.close!r}")


#: Tags that `think_format` looks for when it is told none.
KNOWN_TAGS = (
    ThinkTags(),
    ThinkTags("<thinking>", "</thinking>"),
    ThinkTags("<thought>", "</thought>"),
    ThinkTags("[THINK]", "[/THINK]"),
    ThinkTags("<seed:think>", "</seed:think>"),
)


@dataclass(frozen=True)
class ThinkFormat:
    """Where an LLM's think block begins. ``opening``: what the generation prompt ends with from the opening tag on
    (``<think>\\n``), empty when the LLM writes the tag itself - or leaves the block out.
    """

    tags: ThinkTags = ThinkTags()
    opening: str = ""

    @property
    def opened_by_template(self) -> bool:
        return bool(self.opening)


class Thought(NamedTuple):
    """A raw answer in its parts, whitespace included.

    ``thought`` None: there is no think block. ``answer`` None: the thought never ended. ``finished``: the thought, if
    any, was closed. ``lead``: white space before an opening tag that the LLM wrote.
    """

    thought: str | None
    answer: str | None
    finished: bool
    lead: str = ""


def think_format(prompts: PromptBuilder, tags: ThinkTags | None = None) -> ThinkFormat | None:
    """How this LLM thinks, found by rendering a question; None for one that does not (or was told not to, by
    ``enable_thinking=False`` for instance).

    ``tags``: those of the LLM; None looks for `KNOWN_TAGS` in the chat template. An LLM whose template never mentions
    its tags must be given them.
    """
    rendered = prompts.render([{"role": "user", "content": "question"}])
    template = prompts.tokenizer.chat_template
    source = template if isinstance(template, str) else "\n".join(template.values())
    for known in (tags,) if tags else KNOWN_TAGS:
        end = rendered.rstrip()
        if end.endswith(known.open):
            return ThinkFormat(known, opening=rendered[rendered.rindex(known.open) :])
        if end.endswith(known.close):  # the template has closed an empty block
            return None
        if tags or known.close in source:
            return ThinkFormat(known)
    return None


def split(text: str, format: ThinkFormat | None) -> Thought:
    """The parts of a raw answer; ``join`` gives ``text`` again. The first closing tag ends the thought."""
    lead, inside = "", text
    if format is None or not format.opened_by_template:
        stripped = text.lstrip()
        if format is None or not stripped.startswith(format.tags.open):
            return Thought(None, text, True)
        lead, inside = text[: len(text) - len(stripped)], stripped[len(format.tags.open) :]
    thought, closed, answer = inside.partition(format.tags.close)
    return Thought(thought, answer if closed else None, bool(closed), lead)


def join(parts: Thought, format: ThinkFormat | None) -> str:
    """The raw answer that ``split`` takes apart. Raises ``ValueError`` for parts that no answer of this format has."""
    if parts.thought is None:
        if parts.answer is None or (format is not None and format.opened_by_template):
            raise ValueError(f"an answer needs a thought where the template opens one, or else a text; found {parts}")
        return parts.answer
    if format is None:
        raise ValueError("a thought, but the LLM has no think block")
    if parts.finished != (parts.answer is not None):
        raise ValueError(f"an answer follows a finished thought and no other; found {parts}")
    opening = "" if format.opened_by_template else f"{parts.lead}{format.tags.open}"
    return f"{opening}{parts.thought}{format.tags.close}{parts.answer}" if parts.finished else opening + parts.thought


async def generate_with_budget(
    engine: Engine,
    request: Request,
    *,
    max_thinking_tokens: int,
    max_new_tokens: int,
    format: ThinkFormat | None,
    cut_sentence: str = CUT_SENTENCE,
) -> Generation:
    """One answer whose thought is held to a budget (budget forcing, as in ALARM).

    A first pass of ``max_thinking_tokens``. If they ran out inside the thought, ``cut_sentence`` and the closing tag
    are put behind it; a second pass then goes on up to ``max_new_tokens`` of the LLM's own tokens in all, with random
    numbers of its own. The text is the whole raw answer, the sentence included. ``format`` None: one pass.

    Raises ``EngineError`` for an engine that cannot continue a text, ``ValueError`` for a budget above the whole.
    """
    if not 0 < max_thinking_tokens <= max_new_tokens:
        raise ValueError(
            f"max_thinking_tokens is {max_thinking_tokens}, max_new_tokens {max_new_tokens}; the thought needs at "
            "least 1 token and is part of the whole"
        )
    if format is None:
        return await engine.generate(_limited(request, max_new_tokens))
    if engine.prompts is None:
        raise EngineError(
            f"engine {engine.name!r} leaves chat templates to its server and cannot continue a thought; use one that "
            "renders prompts itself (/v1/completions), or no thinking budget"
        )
    first = await engine.generate(_limited(request, max_thinking_tokens))
    rest = max_new_tokens - (first.new_tokens or max_thinking_tokens)
    if first.error is not None or not first.truncated or rest <= 0:
        return first
    text = first.text
    if not split(request.prefix + text, format).finished:
        text = _without_partial(text, format.tags.close).rstrip()
        text += f"\n\n{cut_sentence}\n{format.tags.close}" if cut_sentence else f"\n{format.tags.close}"
    # With the same seed the second pass would draw the first one's random numbers again.
    seed = random.Random(f"{request.seed}/second pass").getrandbits(32)
    second = await engine.generate(_limited(replace(request, prefix=request.prefix + text, seed=seed), rest))
    return second._replace(
        text=text + second.text if second.error is None else "",
        prompt_tokens=first.prompt_tokens + second.prompt_tokens,
        new_tokens=first.new_tokens + second.new_tokens,
    )


def _limited(request: Request, max_new_tokens: int) -> Request:
    return replace(request, sampling=replace(request.sampling, max_new_tokens=max_new_tokens))


def _without_partial(text: str, tag: str) -> str:
    """``text`` without a tag at its end that was cut in the middle."""
    for length in range(len(tag) - 1, 1, -1):
        if text.endswith(tag[:length]):
            return text[:-length]
    return text
