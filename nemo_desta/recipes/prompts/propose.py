"""Prompts as in ALARM: an LLM generates candidates from one clip's description, a judge keeps the good ones.

The candidates are shuffled by the seed and judged one by one until enough have passed. This equals a uniform draw
among all candidates that would pass, with a fraction of the judge's calls. The wording in ``propose.yaml`` is our own
(paper: ALARM, corpus construction; its texts are not public).
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nemo_desta.core.think_tags import KNOWN_TAGS
from nemo_desta.core.thinking import ThinkFormat, split, think_format
from nemo_desta.recipes.engines.base import Engine, Generation, Request, SamplingConfig
from nemo_desta.recipes.prompts.candidates import parse_candidates
from nemo_desta.recipes.prompts.prompt import Prompt, text_hash
from nemo_desta.recipes.prompts.wording import leak

_TEXTS: dict[str, str] = yaml.safe_load(Path(__file__).with_name("propose.yaml").read_text(encoding="utf-8"))
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


@dataclass(eq=False)
class PromptProposer:
    """Queries an LLM for prompts about one clip.

    Args:
        engine: the LLM that generates the candidates.
        judge_engine: the LLM that judges; None: no judge, only the lexical check.
        num_candidates: prompts requested at once.
        num_examples: descriptions of other clips in the writer's instructions, drawn from ``examples`` by the seed.
        sampling: by default the LLM's own generation config, as in ALARM; the judge always uses its own.
    """

    engine: Engine
    _: KW_ONLY
    judge_engine: Engine | None = None
    num_candidates: int = 20
    num_examples: int = 5
    examples: Sequence[str] = ()
    sampling: SamplingConfig = SamplingConfig(4000, None)

    def __post_init__(self) -> None:
        if self.num_candidates < 1 or self.num_examples < 0:
            found = f"num_candidates is {self.num_candidates}, num_examples {self.num_examples}"
            raise ValueError(f"{found}; they are at least 1 and 0")
        self._think: dict[int, ThinkFormat | None] = {}

    async def __call__(
        self, item_id: str, clip: Mapping[str, Any], description: str, count: int, *, seed: int
    ) -> Proposed:
        """Up to ``count`` prompts for one clip; they depend only on the item and the seed.

        Their ids are derived from their texts, their kind is "proposed". Fewer or none are returned when the LLM wrote
        too few good ones; ``rejected`` says why.
        """
        proposed = Proposed()
        rng = random.Random(f"{seed}:{item_id}:propose")
        others = [text for text in self.examples if text != description]
        shown = rng.sample(others, min(self.num_examples, len(others)))
        system = _TEXTS["writer_system"].format(count=self.num_candidates)
        if shown:
            system += "\n\n" + _TEXTS["writer_examples"].format(examples="\n\n".join(shown))
        user = _TEXTS["writer_user"].format(count=self.num_candidates, description=description)
        answer = await self._ask(self.engine, system, user, self.sampling, rng, proposed)
        for text in self._candidates(answer, rng, proposed):
            if len(proposed.prompts) == count:
                break
            rng_of_judge = random.Random(f"{seed}:{item_id}:judge:{text}")
            if why := await self._objection(text, description, rng_of_judge, proposed):
                proposed.rejected.append((text, why))
            else:
                name = f"proposed-{text_hash(text)}"
                domains = (clip["domain"],) if clip.get("domain") else ()
                proposed.prompts.append(Prompt(name, text, ("proposed",), (), domains, "proposed"))
        return proposed

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

    async def _objection(self, text: str, description: str, rng: random.Random, proposed: Proposed) -> str | None:
        """Why the candidate is rejected, or None."""
        if not _SHORTEST <= len(text) <= _LONGEST:
            return f"{len(text)} characters; a prompt has {_SHORTEST} to {_LONGEST}"
        if found := leak(text):
            return f"leak, {found}"
        if self.judge_engine is None:
            return None
        user = _TEXTS["judge_user"].format(prompt=text, description=description)
        answer = await self._ask(self.judge_engine, _TEXTS["judge_system"], user, _JUDGE_SAMPLING, rng, proposed)
        if answer.error is not None:
            return f"judge, LLM error: {answer.error}"
        answer_text = self._without_thought(answer.text, self.judge_engine)
        verdict = None if answer.truncated else parse_verdict(answer_text or "")
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
        self, engine: Engine, system: str, user: str, sampling: SamplingConfig, rng: random.Random, proposed: Proposed
    ) -> Generation:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
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
