"""Budget forcing for any engine, in two passes as in ALARM."""

import random
from dataclasses import replace

from nemo_desta.core.thinking import CUT_SENTENCE, ThinkFormat, split, without_partial
from nemo_desta.recipes.engines.base import Engine, EngineError, Generation, Request


async def generate_with_budget(
    engine: Engine,
    request: Request,
    *,
    max_thinking_tokens: int,
    max_new_tokens: int,
    format: ThinkFormat | None,
    cut_sentence: str = CUT_SENTENCE,
) -> Generation:
    """One answer whose thought takes ``max_thinking_tokens`` at most.

    The first pass generates ``max_thinking_tokens``. If they end inside the thought, ``cut_sentence`` and the closing
    tag are appended. The second pass continues up to ``max_new_tokens`` of the LLM's own tokens in all, with other
    random numbers. The text is the whole raw answer, the sentence included. ``format`` None: one pass.

    Raises ``EngineError`` if the engine cannot continue a text, ``ValueError`` for a budget above ``max_new_tokens``.
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
        text = without_partial(text, format.tags.close).rstrip()
        text += f"\n\n{cut_sentence}\n{format.tags.close}" if cut_sentence else f"\n{format.tags.close}"
    # With the same seed, the second pass would draw the random numbers of the first pass again.
    seed = random.Random(f"{request.seed}/second pass").getrandbits(32)
    second = await engine.generate(_limited(replace(request, prefix=request.prefix + text, seed=seed), rest))
    return second._replace(
        text=text + second.text if second.error is None else "",
        prompt_tokens=first.prompt_tokens + second.prompt_tokens,
        new_tokens=first.new_tokens + second.new_tokens,
    )


def _limited(request: Request, max_new_tokens: int) -> Request:
    return replace(request, sampling=replace(request.sampling, max_new_tokens=max_new_tokens))
