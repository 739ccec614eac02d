"""Prompts that an LLM proposes: writer and judge by script, then over a real HTTP server."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from nemo_desta.recipes.engines.base import EngineError, Generation, Request, SamplingConfig
from nemo_desta.recipes.prompts import Prompt
from nemo_desta.recipes.prompts.propose import PromptProposer, Proposed, parse_verdict

CLIP = {"id": "c", "domain": "speech", "attributes": {"emotion": "sad"}}
DESCRIPTION = "[00:00-00:02] I have lost it. (Emotion: sad, Duration: 2s)"
GOOD = [f"How does the voice in take {i} sound to you?" for i in range(8)]
LEAKY = ["What does the description say?", "Which emotion tag fits?", "Translate the given text."]
UNKNOWN = ["How old is the speaker?", "Where does the speaker live?"]


class ScriptedEngine:
    """Answers by a function of the request; the requests are kept."""

    name, revision, concurrency, prompts = "scripted", None, 8, None

    def __init__(self, answer: Callable[[Request], str | Generation]) -> None:
        self.answer = answer
        self.requests: list[Request] = []

    async def generate(self, request: Request) -> Generation:
        self.requests.append(request)
        await asyncio.sleep(0)
        answer = self.answer(request)
        return answer if isinstance(answer, Generation) else Generation(answer, False, None, 10, 5)

    async def close(self) -> None:
        pass


def listed(prompts: list[str]) -> str:
    return "<prompts>\n" + "\n".join(f"{i}. {text}" for i, text in enumerate(prompts, 1)) + "\n</prompts>"


def judge_by_script(request: Request) -> str | Generation:
    """Passes what is about the voice; for take 3 it rambles, at take 4 it is cut off."""
    prompt = request.messages[-1]["content"].partition("The prompt:\n")[2]
    if "take 3" in prompt:
        return "YES, I think so.\nThough on the other hand one could see it quite differently, no?"
    if "take 4" in prompt:
        return Generation("First of all, the voice.\nYES", truncated=True)
    return f"The facts hold an emotion.\n\n**Verdict: {'YES' if 'voice' in prompt else 'NO'}**"


def propose(proposer: PromptProposer, count: int = 1, seed: int = 0, item: str = "c-p0", **more: Any) -> Proposed:
    return asyncio.run(proposer(item, CLIP, DESCRIPTION, count, seed=seed, **more))


def test_good_candidates_are_kept_and_each_other_one_is_refused_with_its_reason() -> None:
    written = [*GOOD, *LEAKY, *UNKNOWN, GOOD[0].upper(), "Eh?", "x" * 900]
    writer, judge = ScriptedEngine(lambda request: listed(written)), ScriptedEngine(judge_by_script)
    proposed = propose(PromptProposer(writer, judge_engine=judge), count=99)
    assert {p.prompt for p in proposed.prompts} == {*GOOD} - {GOOD[3], GOOD[4]}
    why = dict(proposed.rejected)
    assert all(why[text].startswith("leak, ") for text in LEAKY)
    assert all(why[text] == "judge said no" for text in UNKNOWN)
    assert why[GOOD[3]] == why[GOOD[4]] == "judge gave no verdict"
    assert why[GOOD[0].upper()] == "duplicate"
    assert why["Eh?"].startswith("3 characters;") and why["x" * 900].startswith("900 characters;")
    assert len(proposed.prompts) + len(proposed.rejected) == len(written)
    # Leaks, duplicates and misshapen ones never reach the judge.
    assert len(judge.requests) == 10 and proposed.calls == 11
    assert (proposed.prompt_tokens, proposed.new_tokens) == (100, 50)


def test_proposed_prompts_have_ids_of_their_texts() -> None:
    engine = ScriptedEngine(lambda request: listed(GOOD[:1]))
    prompt = propose(PromptProposer(engine)).prompts[0]
    assert prompt == Prompt(prompt.prompt_id, GOOD[0], ("proposed",), (), ("speech",), "proposed")
    assert prompt.prompt_id == propose(PromptProposer(engine), seed=9, item="other").prompts[0].prompt_id
    assert prompt.prompt_id.startswith("proposed-") and len(prompt.prompt_id) == 17


def test_one_is_drawn_evenly_among_the_good_ones_and_the_judge_stops_there() -> None:
    writer, judge = ScriptedEngine(lambda request: listed([*GOOD, *UNKNOWN])), ScriptedEngine(judge_by_script)
    proposer = PromptProposer(writer, judge_engine=judge)
    drawn = Counter(propose(proposer, item=f"r{i}").prompts[0].prompt for i in range(600))
    assert set(drawn) == {*GOOD} - {GOOD[3], GOOD[4]} and max(drawn.values()) < 140 and min(drawn.values()) > 60
    assert len(judge.requests) < 2 * 600
    one, three = propose(proposer, item="r1"), propose(proposer, count=3, item="r1")
    assert three.prompts[:1] == one.prompts and len(three.prompts) == 3
    assert propose(proposer, item="r1") == one != propose(proposer, item="r1", seed=1)


def test_the_writer_sees_description_and_examples_and_the_judge_each_candidate() -> None:
    writer, judge = ScriptedEngine(lambda request: listed(GOOD)), ScriptedEngine(judge_by_script)
    sampling = SamplingConfig(77, 1.0)
    proposer = PromptProposer(writer, judge_engine=judge, num_candidates=7, num_examples=2, sampling=sampling)
    examples = [DESCRIPTION, *(f"[00:00-00:0{i}] example {i}" for i in range(1, 9))]
    proposer.examples = examples
    proposed = propose(proposer)
    system, user = (message["content"] for message in writer.requests[0].messages)
    assert "Write 7 prompts" in system and sum(text in system for text in examples) == 2
    assert DESCRIPTION in user and DESCRIPTION not in system and writer.requests[0].sampling == sampling
    asked = judge.requests[-1].messages[-1]["content"]
    assert DESCRIPTION in asked and asked.endswith(proposed.prompts[0].prompt)
    propose(proposer, item="another")
    assert writer.requests[1].messages[0] != writer.requests[0].messages[0]
    proposer.examples = ()
    propose(proposer)
    assert "other recordings" not in writer.requests[2].messages[0]["content"]
    assert writer.requests[1].seed != writer.requests[0].seed


def test_thoughts_of_writer_and_judge_are_left_aside() -> None:
    thinking = "1. A first idea of mine here?\n<prompts>1. A draft that I drop?</prompts>\nNO\n</think>\n\n"
    writer = ScriptedEngine(lambda request: thinking + listed(GOOD[:1]))
    judge = ScriptedEngine(lambda request: thinking + "Fine.\nYES")
    assert [p.prompt for p in propose(PromptProposer(writer, judge_engine=judge)).prompts] == GOOD[:1]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "no prompts in ''"),
        ("<prompts></prompts>", "no prompts in '<prompts></prompts>'"),
        (Generation("", False, "the server is on fire"), "LLM error: the server is on fire"),
    ],
)
def test_no_list_is_no_prompt_and_says_why(answer: str | Generation, why: str) -> None:
    proposed = propose(PromptProposer(ScriptedEngine(lambda request: answer)))
    assert proposed.prompts == [] and proposed.rejected == [("", why)] and proposed.calls == 1


def test_a_judge_that_fails_refuses_and_a_broken_engine_stops_the_run() -> None:
    writer = ScriptedEngine(lambda request: listed(GOOD[:2]))
    failing = ScriptedEngine(lambda request: Generation("", False, "too long"))
    proposed = propose(PromptProposer(writer, judge_engine=failing))
    assert proposed.prompts == [] and {why for _, why in proposed.rejected} == {"judge, LLM error: too long"}

    def broken(request: Request) -> str:
        raise EngineError("no such server")

    with pytest.raises(EngineError, match="no such server"):
        propose(PromptProposer(writer, judge_engine=ScriptedEngine(broken)))
    with pytest.raises(ValueError, match="num_candidates is 0"):
        PromptProposer(writer, num_candidates=0)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("All hold.\nYES", True),
        ("no", False),
        ("Reason.\n\n**Verdict: NO.**\n", False),
        ("Final answer: yes", True),
        ("YES\nbecause it is fine", None),
        ("YES or NO", None),
        ("I would say no to this one since it leaks", None),
        ("", None),
        ("not", None),
    ],
)
def test_the_verdict_is_the_last_line_or_none(text: str, verdict: bool | None) -> None:
    assert parse_verdict(text) is verdict
