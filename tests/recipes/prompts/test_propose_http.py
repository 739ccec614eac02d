"""Proposals and their judge over a real OpenAI-compatible HTTP server that answers by script, good and bad mixed."""

import asyncio
import hashlib
from collections import Counter

import pytest

pytest.importorskip("aiohttp")

from nemo_desta.recipes.engines.openai import OpenAIEngine
from nemo_desta.recipes.prompts.propose import PromptProposer, Proposed
from nemo_desta.testing.openai_server import Faults, ScriptedServer

GOOD = ["What do you hear in this clip?", "Name the sound, please.", "Is that a dog you hear?"]
BAD = ["What does the caption say?", "Who recorded this and when?"]


def answer(prompt: str) -> str:
    """The writer's lists come in three shapes, one of them without anything usable; the judge knows what is open."""
    if "The prompt:\n" in prompt:
        return "It cannot be known.\nNO" if BAD[1] in prompt else "Fine.\nYES"
    shape = hashlib.sha256(prompt.encode()).digest()[0] % 4
    if shape == 0:
        return "I am sorry:"
    texts = [*GOOD, *BAD]
    lines = "\n".join(f"{i}. {text}" for i, text in enumerate(texts, 1)) if shape > 1 else str(texts).replace("'", '"')
    return f"Of course.\n<prompts>\n{lines}\n</prompts>"


def test_proposals_over_http_are_usable_or_say_why_whatever_the_server_answers() -> None:
    with ScriptedServer(answer, faults=Faults(http_500=0.05, dropped=0.02, malformed=0.02)) as server:

        async def run() -> list[Proposed]:
            engine = OpenAIEngine(server.url, server.model, api="chat", first_wait_secs=0.01)
            proposer = PromptProposer(engine, judge_engine=engine)
            clips = [{"id": f"c{i}", "domain": "sound"} for i in range(80)]
            try:
                asked = (proposer(c["id"], c, f"[00:00-00:01] (Sound: dog {c['id']})", 1, seed=0) for c in clips)
                return await asyncio.gather(*asked)
            finally:
                await engine.close()

        results = asyncio.run(run())
        assert sum(server.counts.values()) > sum(one.calls for one in results)
    drawn = Counter(one.prompts[0].prompt for one in results if one.prompts)
    assert set(drawn) == set(GOOD)
    empty = [one for one in results if not one.prompts]
    assert 5 < len(empty) < 40 and all(one.rejected[0][1].startswith("no prompts in") for one in empty)
    reasons = Counter(why.partition(":")[0] for one in results for text, why in one.rejected if text)
    assert set(reasons) == {"leak, a text as given", "judge said no"} and min(reasons.values()) > 5
    assert sum(one.new_tokens for one in results) > 0
