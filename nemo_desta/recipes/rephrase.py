"""Self-rephrasing (ALARM): the LLM rewrites its own answer from "I read a description" to "I hear the audio".

The rewriter sees only the first answer R0. Think tags are replaced by neutral names, so that the LLM does not take
them for its own, and restored afterwards. The rewriter's own thought is dropped.
"""

import re
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import NamedTuple

from nemo_desta.core.think_tags import between_tags
from nemo_desta.core.thinking import CUT_SENTENCE, ThinkFormat, Thought, join, split, think_format
from nemo_desta.errors import RowError
from nemo_desta.recipes.engines.base import Engine, Generation, Request, SamplingConfig
from nemo_desta.recipes.items import Rejection
from nemo_desta.recipes.rephrase_text import INSTRUCTIONS, RephraseInstructions
from nemo_desta.recipes.think_budget import generate_with_budget

#: Characters of tolerance beyond the allowed length ratio; short answers change by more than a ratio.
LENGTH_SLACK = 60


class Rephrased(NamedTuple):
    """``text``: the rewritten raw answer, empty with ``error``. ``truncated``: as R0 was. Token counts include the
    rewriter's thought.
    """

    text: str
    truncated: bool
    error: Rejection | None
    prompt_tokens: int
    new_tokens: int


@dataclass(eq=False)
class Rephraser:
    """Rewrites raw answers of ``engine``'s LLM with the same LLM.

    Args:
        format: the LLM's think block; None finds it in the engine's chat template. Without one (instruct LLMs, or a
            server that renders prompts itself) answers are rewritten as a whole, in one pass without thinking budget.
        max_thinking_tokens: the rewriter's thought is ended by force after so many tokens.
        max_new_tokens: limit of both passes together; replaces that of ``sampling``.
        sampling: the default uses the LLM's generation config.
        length_ratio: allowed length of the rewritten thought, and of the rewritten answer, relative to R0's.

    Reasons of `Rephrased.error`: "LLM error", "rewriter cut", "no answer tags", "think block lost", "think block
    changed", "answer lost", "rewriting too short", "rewriting too long", "nothing to rewrite".
    """

    engine: Engine
    _: KW_ONLY
    format: ThinkFormat | None = None
    max_thinking_tokens: int = 1536
    max_new_tokens: int = 4096
    sampling: SamplingConfig = SamplingConfig(4096, None)
    instructions: RephraseInstructions = INSTRUCTIONS
    cut_sentence: str = CUT_SENTENCE
    length_ratio: tuple[float, float] = (0.5, 2.0)

    def __post_init__(self) -> None:
        if not 0 <= self.length_ratio[0] < self.length_ratio[1]:
            raise ValueError(f"length_ratio is {self.length_ratio}; expected a smaller and a larger number, 0 or more")
        if self.format is None and self.engine.prompts is not None:
            self.format = think_format(self.engine.prompts)
        self.sampling = replace(self.sampling, max_new_tokens=self.max_new_tokens)

    async def __call__(self, response: str, *, truncated: bool, seed: int) -> Rephrased:
        """``response``: a raw answer (R0), ``truncated`` when it was cut by its token limit."""
        before = split(response, self.format)
        if not response.strip():
            return Rephrased("", truncated, Rejection("nothing to rewrite", "the first answer is empty"), 0, 0)
        tag = None if before.thought is None else _free_name(self.instructions.neutral_tags, response)
        wanted = self.instructions.answer_tags
        answer_tag = _free_name(wanted, response, taken=tag) if wanted else None
        shown = response.strip() if tag is None else _with_neutral_tags(before, self.format, tag)
        messages = self.instructions.messages(shown, tag=tag, answer_tag=answer_tag)

        request = Request(messages, self.sampling, seed)
        if self.engine.prompts is None:
            generation = await self.engine.generate(request)
        else:
            generation = await generate_with_budget(
                self.engine,
                request,
                max_thinking_tokens=self.max_thinking_tokens,
                max_new_tokens=self.max_new_tokens,
                format=self.format,
                cut_sentence=self.cut_sentence,
            )
        text, error = "", None
        try:
            text = self._as_raw_answer(_rewritten(generation, self.format, answer_tag), before, shown, tag)
        except RowError as found:
            error = Rejection(found.reason, str(found))
        return Rephrased(text, truncated, error, generation.prompt_tokens, generation.new_tokens)

    def _as_raw_answer(self, rewritten: str, before: Thought, shown: str, tag: str | None) -> str:
        """The rewritten text with R0's tags and white space, and unfinished if R0 was."""
        thought, answer = _parts(rewritten, before, shown, tag)
        if self.format is not None and tag is not None:
            tags = self.format.tags
            thought, answer = (
                part and part.replace(f"<{tag}>", tags.open).replace(f"</{tag}>", tags.close)
                for part in (thought, answer)
            )
        after = Thought(_spaced_like(thought, before.thought), _spaced_like(answer, before.answer), *before[2:])
        text = join(after, self.format)
        if split(text, self.format) != after:
            raise RowError("think block changed", f"the rewriting has think tags of its own: {_start(rewritten)}")
        for what in ("thought", "answer"):
            old, new = (len((getattr(parts, what) or "").strip()) for parts in (before, after))
            if new < self.length_ratio[0] * old - LENGTH_SLACK:
                raise RowError("rewriting too short", f"{what} of {old} characters became {new}")
            if new > self.length_ratio[1] * old + LENGTH_SLACK:
                raise RowError("rewriting too long", f"{what} of {old} characters became {new}")
        return text


def _with_neutral_tags(parts: Thought, format: ThinkFormat, tag: str) -> str:
    """R0 as the rewriter sees it: always with both tags, even where R0 itself lacks one."""
    opening, closing = format.tags.open, format.tags.close
    thought = (parts.thought or "").strip("\n")
    if parts.finished:
        text = f"{opening}\n{thought}\n{closing}\n\n{(parts.answer or '').strip()}".rstrip()
    else:
        text = f"{opening}\n{thought.rstrip()}\n{closing}"
    return text.replace(opening, f"<{tag}>").replace(closing, f"</{tag}>")


def _rewritten(generation: Generation, format: ThinkFormat | None, answer_tag: str | None) -> str:
    """The rewritten text: the part of the rewriter's answer after its last opening tag."""
    text = generation.text
    if generation.error is not None:
        raise RowError("LLM error", generation.error)
    if generation.truncated:
        raise RowError("rewriter cut", f"its token limit came at {text[-60:]!r}")
    answer = split(text, format).answer
    if answer is None:
        raise RowError("no answer tags", f"the rewriter never stopped thinking: {text[-60:]!r}")
    if answer_tag is None:
        return answer.strip()
    if f"<{answer_tag}>" not in answer:
        raise RowError("no answer tags", f"no <{answer_tag}> in {_start(answer)}")
    return between_tags(answer, answer_tag)


def _parts(rewritten: str, before: Thought, shown: str, tag: str | None) -> tuple[str | None, str | None]:
    """Thought and answer of a rewritten text that still has neutral tags."""
    if tag is None:
        if not rewritten:
            raise RowError("answer lost", "the rewriting is empty")
        return None, rewritten
    opening, closing = f"<{tag}>", f"</{tag}>"
    body = rewritten.partition(opening)[2] if opening in rewritten else rewritten
    thought, closed, answer = body.partition(closing)
    if not closed and (before.finished or opening not in rewritten):
        raise RowError("think block lost", f"the first answer has a thought, not so {_start(rewritten)}")
    if (before.thought or "").strip() and not thought.strip():
        raise RowError("think block lost", f"the thought is empty in {_start(rewritten)}")
    if rewritten.count(closing) > max(shown.count(closing), 1) or rewritten.count(opening) > shown.count(opening):
        raise RowError("think block changed", f"more think tags than before in {_start(rewritten)}")
    if not before.finished:  # text after the closing tag that we added is not R0's
        return thought, None
    if (before.answer or "").strip() and not answer.strip():
        raise RowError("answer lost", f"nothing after the thought in {_start(rewritten)}")
    return thought, answer


def _free_name(names: Sequence[str], text: str, taken: str | None = None) -> str:
    """The first of ``names`` that is no tag in ``text``; with a number appended when all are."""
    numbered = (f"{names[0]}_{number}" for number in range(2, len(text) + 3))
    for name in (*names, *numbered):
        if name != taken and not re.search(rf"</?{name}\s*/?>", text, re.IGNORECASE):
            return name
    raise AssertionError("a text has fewer tags than characters")


def _spaced_like(new: str | None, old: str | None) -> str | None:
    """``new`` with the white space around it that ``old`` had."""
    if new is None or old is None:
        return None
    inner = old.strip()
    if not inner:
        return old if not new.strip() else new
    start = old.index(inner)
    return old[:start] + new.strip() + old[start + len(inner) :]


def _start(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:80]}...")
