"""Prompts as in ALARM: an LLM generates candidates from one clip's description, a judge keeps the good ones.

The candidates are shuffled by the seed and judged one by one until enough have passed. This equals a uniform draw
among all candidates that would pass, with a fraction of the judge's calls. The wording is our own (paper: ALARM,
corpus construction; its texts are not public).
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nemo_desta.core.think_tags import KNOWN_TAGS
from nemo_desta.core.thinking import ThinkFormat, split, think_format
from nemo_desta.recipes.engines.base import Engine, Generation, Request, SamplingConfig
from nemo_desta.recipes.prompts.candidates import parse_candidates
from nemo_desta.recipes.prompts.prompt import Prompt, text_hash
from nemo_desta.recipes.prompts.wording import leak

WRITER_SYSTEM = """\
You invent things to ask about audio recordings. An assistant with excellent hearing will get one recording together \
with one of your prompts. The assistant gets only the sound. You cannot hear it, so you get some facts about it.

Write {count} prompts for the recording. What each of them must be like:
- Its answer follows from the facts, or it asks for something that can be made out of them (a story, a translation, \
a reply, an opinion).
- It speaks to someone who listens: "the recording", "the voice", "what you hear". Never let it show that facts were \
put down in words: no mention of a description, transcript, caption, text, metadata, tags or labels, and nothing \
quoted from them that a listener would be told in advance.
- It does not give away its own answer.
- It stands alone, without reference to another prompt.
Make them as different as you can: short and long, plain and playful; direct questions, comparisons, yes-no and \
multiple choice, role play, creative tasks, translations, step-by-step reasoning, and some that ask for a format, \
such as JSON, a word limit or capitals only.

Put the prompts as a numbered list between <prompts> and </prompts>, and write nothing after that."""

WRITER_EXAMPLES = """

To give you an idea of what there can be, here are the facts about some other recordings:
{examples}"""

WRITER_USER = """\
The facts about the recording:
{description}

Write the {count} prompts now."""

JUDGE_SYSTEM = """\
You check prompts for an assistant that hears a recording and knows nothing else about it. You are shown some facts \
about the recording, which the assistant will not see, and one prompt. Check three things:
1. Can the prompt be answered from these facts? Creative tasks pass if the facts are enough to start from; questions \
about what the facts leave open do not.
2. Would somebody who is listening to the recording naturally say this?
3. Does the prompt keep quiet about any written form of the facts? A mention of a description, transcript, caption, \
text, metadata, tags or labels as something that is at hand fails, and so does a prompt that tells its own answer.
Give your reasons in a sentence or two. Then write one last line: YES if all three hold, otherwise NO."""

JUDGE_USER = """\
The facts about the recording:
{description}

The prompt:
{prompt}"""

_SHORTEST, _LONGEST = 8, 800
_JUDGE_SAMPLING = SamplingConfig(1024, None)


@dataclass
class Proposed:
    """``prompts``: the drawn ones. ``rejected``: (text, why) of rejected candidates, or ("", why) if the LLM returned
    no list. ``calls`` and tokens: writer and judge together."""

    prompts: list[Prompt] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    calls: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0


class PromptProposer:
    """Queries an LLM for prompts about one clip.

    Args:
        engine: the LLM that generates the candidates.
        judge_engine: the LLM that judges; None: no judge, only the lexical check.
        num_candidates: prompts requested at once.
        num_examples: descriptions of other clips in the writer's instructions, drawn from ``examples`` by the seed.
        examples: descriptions used when a call passes none.
        sampling: by default the LLM's own generation config, as in ALARM; the judge always uses its own.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        judge_engine: Engine | None = None,
        num_candidates: int = 20,
        num_examples: int = 5,
        examples: Sequence[str] = (),
        sampling: SamplingConfig = SamplingConfig(4000, None),  # noqa: B008 - frozen
    ) -> None:
        if num_candidates < 1 or num_examples < 0:
            raise ValueError(
                f"num_candidates is {num_candidates}, num_examples {num_examples}; they are at least 1 and 0"
            )
        self.engine = engine
        self.judge_engine = judge_engine
        self.num_candidates = num_candidates
        self.num_examples = num_examples
        self.examples = examples
        self.sampling = sampling
        self._think: dict[int, ThinkFormat | None] = {}

    async def __call__(
        self,
        item_id: str,
        clip: Mapping[str, Any],
        description: str,
        count: int,
        *,
        seed: int,
        examples: Sequence[str] | None = None,
    ) -> Proposed:
        """Up to ``count`` prompts for one clip; they depend only on the item and the seed.

        Their ids are derived from their texts, their kind is "proposed". Fewer or none are returned when the LLM wrote
        too few good ones; ``rejected`` says why.
        """
        proposed = Proposed()
        rng = random.Random(f"{seed}:{item_id}:propose")
        others = [text for text in (self.examples if examples is None else examples) if text != description]
        shown = rng.sample(others, min(self.num_examples, len(others)))
        answer = await self._ask(self.engine, self._writer_messages(description, shown), self.sampling, rng, proposed)
        for text in self._candidates(answer, rng, proposed):
            if len(proposed.prompts) == count:
                break
            if why := await self._objection(text, description, seed, item_id, proposed):
                proposed.rejected.append((text, why))
            else:
                name = f"proposed-{text_hash(text)}"
                domains = (clip["domain"],) if clip.get("domain") else ()
                proposed.prompts.append(Prompt(name, text, ("proposed",), (), domains, "proposed"))
        return proposed

    def _writer_messages(self, description: str, examples: Sequence[str]) -> list[dict[str, str]]:
        system = WRITER_SYSTEM.format(count=self.num_candidates)
        if examples:
            system += WRITER_EXAMPLES.format(examples="\n\n".join(examples))
        user = WRITER_USER.format(count=self.num_candidates, description=description)
        return [{"role": "system", "content": system}, {"role": "user", "content": user}]

    def _candidates(self, answer: Generation, rng: random.Random, proposed: Proposed) -> list[str]:
        """The candidates in the writer's answer, in random order, without duplicates."""
        if answer.error is not None:
            proposed.rejected.append(("", f"LLM error: {answer.error}"))
            return []
        text = self._without_thought(answer.text, self.engine)
        candidates = parse_candidates(text or "", truncated=answer.truncated)
        if not candidates:
            what = "the thought never ended" if text is None else f"no prompts in {text[:80]!r}"
            proposed.rejected.append(("", what))
        kept: dict[str, str] = {}
        for candidate in candidates:
            same = " ".join(re.findall(r"\w+", candidate.casefold())) or candidate
            if same in kept:
                proposed.rejected.append((candidate, "duplicate"))
            kept.setdefault(same, candidate)
        drawn = list(kept.values())
        rng.shuffle(drawn)
        return drawn

    async def _objection(self, text: str, description: str, seed: int, item_id: str, proposed: Proposed) -> str | None:
        """Why the candidate is rejected, or None."""
        if not _SHORTEST <= len(text) <= _LONGEST:
            return f"{len(text)} characters; a prompt has {_SHORTEST} to {_LONGEST}"
        if found := leak(text):
            return f"leak, {found}"
        if self.judge_engine is None:
            return None
        user = JUDGE_USER.format(prompt=text, description=description)
        messages = [{"role": "system", "content": JUDGE_SYSTEM}, {"role": "user", "content": user}]
        rng = random.Random(f"{seed}:{item_id}:judge:{text}")
        answer = await self._ask(self.judge_engine, messages, _JUDGE_SAMPLING, rng, proposed)
        if answer.error is not None:
            return f"judge, LLM error: {answer.error}"
        text_of_judge = self._without_thought(answer.text, self.judge_engine)
        verdict = None if answer.truncated else parse_verdict(text_of_judge or "")
        if verdict is None:
            return "judge gave no verdict"
        return None if verdict else "judge said no"

    def _without_thought(self, text: str, engine: Engine) -> str | None:
        """The answer after the thought; None when the thought never ended."""
        if id(engine) not in self._think:
            self._think[id(engine)] = think_format(engine.prompts) if engine.prompts is not None else None
        if (format := self._think[id(engine)]) is not None:
            return split(text, format).answer
        for tags in KNOWN_TAGS:  # a server may use a template that is not known here
            text = text.rpartition(tags.close)[2]
        return text

    async def _ask(
        self,
        engine: Engine,
        messages: list[dict[str, str]],
        sampling: SamplingConfig,
        rng: random.Random,
        proposed: Proposed,
    ) -> Generation:
        answer = await engine.generate(Request(messages, sampling, rng.getrandbits(32)))
        proposed.calls += 1
        proposed.prompt_tokens += answer.prompt_tokens
        proposed.new_tokens += answer.new_tokens
        return answer


def parse_verdict(text: str) -> bool | None:
    """YES or NO on the last line, ignoring markup and a word such as "Verdict:"; None for neither or both."""
    lines = [line for line in text.splitlines() if line.strip()]
    words = re.findall(r"[a-z]+", lines[-1].casefold()) if lines else []
    said = {word for word in words if word in ("yes", "no")}
    return "yes" in said if len(said) == 1 and len(words) <= 4 else None
