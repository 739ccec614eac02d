"""The stages: which rows a clip becomes, what is asked, what is asked again, and what a row says of its origin."""

import asyncio
from typing import Any

import pytest

from nemo_desta.core.thinking import ThinkFormat
from nemo_desta.data.rows import RowRules, check_row
from nemo_desta.recipes.ask import Answerer
from nemo_desta.recipes.engines import Generation, Request, SamplingConfig
from nemo_desta.recipes.items import Rejection
from nemo_desta.recipes.pipeline import Outcome
from nemo_desta.recipes.prompts import Constraint, Prompt, draw
from nemo_desta.recipes.rephrase import Rephrased
from nemo_desta.recipes.self_generate import ClipRows, SelfGenerate, SelfRephrase

PROMPTS = [Prompt("said", "What is said?", requires=("transcript",)), Prompt("who", "Who?", requires=("gender",))]
CLIP = {
    "id": "c1",
    "audio": "audio/c1.flac",
    "duration": 1.4,
    "domain": "speech",
    "transcript": "hello there",
    "attributes": {"gender": "female"},
    "source": "toy",
    "corpus": "toy",
    "corpus_version": "2",
    "language": "en",
    "split": "train",
    "group": "s1",
}


class Scripted:
    """Answers by a function of the request; keeps what it was asked."""

    name, revision, concurrency, prompts = "scripted", "abc", 4, None

    def __init__(self, answer=lambda request: "It is a woman.") -> None:
        self.answer = answer
        self.asked: list[Request] = []

    async def generate(self, request: Request) -> Generation:
        self.asked.append(request)
        answer = self.answer(request)
        return answer if isinstance(answer, Generation) else Generation(answer, False, None, 11, 5)

    async def close(self) -> None:
        pass


def clip_rows(**options: Any) -> ClipRows:
    options = {"rows_per_clip": 2, **options}
    return ClipRows(draw=lambda clip, count: draw(PROMPTS, clip, count, seed=0), **options)


def stage(engine: Scripted, **options: Any) -> SelfGenerate:
    rows = options.pop("rows", None) or clip_rows()
    answerer = Answerer(engine, SamplingConfig(max_new_tokens=8), **options.pop("request", {}))
    return SelfGenerate(rows, answerer, **{"gate": lambda row, clip: None, **options})


def make(stage: Any, unit: dict[str, Any] = CLIP) -> list[Outcome]:
    async def all_of_them() -> list[Outcome]:
        return [await stage.make(w.item) for w in stage.wanted(unit) if w.verdict is None]

    return asyncio.run(all_of_them())


def test_a_row_is_a_desta_aqa_row_with_its_origin() -> None:
    engine = Scripted()
    outcomes = make(stage(engine, provenance={"llm": "scripted", "llm_revision": "abc"}))
    row = next(o.row for o in outcomes if o.row["prompt_id"] == "who")
    description = "[00:00-00:01] hello there (Gender: female, Duration: 1s)"
    audio = {"audio": "audio/c1.flac", "text": "hello there", "duration": 1.4}
    assert row == {
        "id": row["id"],
        "dataset": "toy",
        "seed_description": description,
        "prompt": "Who?",
        "messages": [{"role": "user", "content": "<|AUDIO|>\nWho?", "audios": [audio]}],
        "response": "It is a woman.",
        "truncated": False,
        "stage": "self_generate",
        "prompt_id": "who",
        "prompt_kind": "",
        "prompt_requires": ["gender"],
        "seed": row["seed"],
        "attempt": 0,
        "language": "en",
        "split": "train",
        "group": "s1",
        "corpus": "toy",
        "corpus_version": "2",
        "llm": "scripted",
        "llm_revision": "abc",
    }
    assert check_row(row, RowRules(strict_keys=True)) == row  # the format knows every field
    assert {o.row["id"] for o in outcomes} == {"c1-p0", "c1-p1"} and len({o.row["seed"] for o in outcomes}) == 2
    asked = {request.messages[0]["content"]: request for request in engine.asked}
    assert set(asked) == {f"{description}\nWho?", f"{description}\nWhat is said?"}
    assert asked[f"{description}\nWho?"].seed == row["seed"]


def test_a_short_question_has_its_own_limit_unless_the_llm_thinks() -> None:
    word = Constraint("one_word")
    prompts = [
        Prompt("d", "Describe.", kind="describe"),
        Prompt("a", "Who?", kind="ask"),
        Prompt("w", "Who? One word.", kind="ask", constraint=word),
        Prompt("c", "Who? No commas.", kind="ask", constraint=Constraint("no_commas")),
        Prompt("l", "Long?", kind="long"),
    ]
    limits = {"max_new_tokens_by_kind": {"ask": 5, "one_word": 2, "long": 99}}
    rows = ClipRows(draw=lambda clip, count: prompts, rows_per_clip=5)
    sampling = {"sampling": {"max_new_tokens": 8, "temperature": 0.05}}

    def asked(**more: Any) -> tuple[list[int], list[int]]:
        engine = Scripted()
        outcomes = make(stage(engine, rows=rows, request={**limits, **more}, provenance=sampling))
        recorded = [outcome.row["sampling"] for outcome in outcomes]
        assert all(one["temperature"] == 0.05 for one in recorded)
        return [one.sampling.max_new_tokens for one in engine.asked], [one["max_new_tokens"] for one in recorded]

    assert asked() == ([8, 5, 2, 5, 8], [8, 5, 2, 5, 8])
    assert asked(max_new_tokens_by_kind=None) == ([8] * 5, [8] * 5)
    assert asked(think=ThinkFormat()) == ([8] * 5, [8] * 5)


def test_a_request_can_be_worded_as_alarm_does() -> None:
    engine = Scripted()
    request = {"system": "You hear.", "template": "<audio>{description}</audio>\n\n{prompt}"}
    make(stage(engine, request=request, rows=clip_rows(dialect="alarm")))
    system, user = engine.asked[0].messages
    assert system == {"role": "system", "content": "You hear."}
    assert user["content"].startswith("<audio>[00:00-00:01] hello there (duration: 1s, gender: female)</audio>\n\nW")


def test_braces_in_a_transcript_stay_as_they_are() -> None:
    engine = Scripted()
    make(stage(engine), {**CLIP, "transcript": "say {prompt} and {0}"})
    assert "say {prompt} and {0} (Gender" in engine.asked[0].messages[0]["content"]


def test_a_clip_gets_only_prompts_that_its_description_answers() -> None:
    wanted = clip_rows()({**CLIP, "transcript": None})
    assert [w.item.prompt.prompt_id for w in wanted if w.verdict is None] == ["who"]
    assert wanted[1].verdict == Rejection("no fitting prompt", "1 of 2 prompts fit") and wanted[1].id == "c1-p1"


def test_what_no_one_can_hear_is_not_described() -> None:
    rows = clip_rows(not_audible={"gender"}, rows_per_clip=1)
    assert rows(CLIP)[0].item.description == "[00:00-00:01] hello there (Duration: 1s)"


@pytest.mark.parametrize("seconds", [2.0, None])
def test_a_length_that_the_corpus_does_not_say_comes_from_the_audio(seconds: float | None) -> None:
    rows = clip_rows(check_audio=lambda clip: (None, seconds), rows_per_clip=1)
    (wanted,) = rows({**CLIP, "duration": None})
    if seconds is None:
        assert wanted.verdict.reason == "unknown duration"
    else:
        assert wanted.item.clip["duration"] == 2.0 and "Duration: 2s" in wanted.item.description


def test_refused_clips_are_never_asked_about() -> None:
    bad = Rejection("missing audio", "no file")
    audio = clip_rows(check_audio=lambda clip: (bad, None))
    listed = clip_rows(check_clip=lambda clip: Rejection("benchmark item", clip["id"]), check_audio=lambda clip: 1 / 0)
    assert [w.verdict for w in audio(CLIP)] == [bad, bad]
    assert [w.verdict.reason for w in listed(CLIP)] == ["benchmark item"] * 2


def test_a_refused_answer_is_asked_for_again_with_another_seed() -> None:
    seeds: list[int] = []

    def answer(request: Request) -> str:
        seeds.append(request.seed)
        return "The text says: a woman." if len(seeds) < 3 else "A woman."

    def gate(row, clip):
        return Rejection("leak", row["response"]) if "text" in row["response"] else None

    engine = Scripted(answer)
    (outcome,) = make(stage(engine, gate=gate, regenerable={"leak"}, rows=clip_rows(rows_per_clip=1)))
    assert outcome.verdict is None and outcome.row["response"] == "A woman." and outcome.row["attempt"] == 2
    assert outcome.attempts == 3 and (outcome.prompt_tokens, outcome.new_tokens) == (33, 15)
    assert len(set(seeds)) == 3 and seeds[0] == outcome.row["seed"]


def test_attempts_are_bounded_and_pointless_ones_are_not_made() -> None:
    engine = Scripted()
    options = {"gate": lambda row, clip: Rejection("leak", "again"), "rows": clip_rows(rows_per_clip=1)}
    (outcome,) = make(stage(engine, regenerable={"leak"}, max_attempts=4, **options))
    assert outcome.attempts == 4 and outcome.verdict.reason == "leak" and outcome.row["response"]
    (outcome,) = make(stage(engine, regenerable={"empty"}, max_attempts=4, **options))
    assert outcome.attempts == 1 and len(engine.asked) == 5


def test_no_answer_is_no_row() -> None:
    broken = Scripted(lambda request: Generation("", False, "prompt of 9 tokens, the context leaves 8"))
    (outcome,) = make(stage(broken, rows=clip_rows(rows_per_clip=1)))
    assert outcome.row is None and outcome.verdict == Rejection(
        "LLM error", "prompt of 9 tokens, the context leaves 8"
    )
    (outcome,) = make(stage(Scripted(lambda r: "  \n"), rows=clip_rows(rows_per_clip=1), regenerable={"empty"}))
    assert outcome.row is None and outcome.verdict.reason == "empty" and outcome.attempts == 3


class Upper:
    """A rephraser that shouts, and fails on request."""

    def __init__(self, error: Rejection | None = None) -> None:
        self.error = error

    async def __call__(self, response: str, *, truncated: bool, seed: int) -> Rephrased:
        return Rephrased(response.upper(), truncated, self.error, 100, 10)


def test_rephrasing_in_one_go_keeps_the_first_answer_and_gates_see_the_second() -> None:
    seen = []
    options = {"rephraser": Upper(), "gate": lambda row, clip: seen.append(row["response"])}
    (outcome,) = make(stage(Scripted(), rows=clip_rows(rows_per_clip=1), **options))
    row = outcome.row
    assert (
        (row["response"], row["first_response"]) == ("IT IS A WOMAN.", "It is a woman.") == (seen[0], "It is a woman.")
    )
    assert row["stage"] == "self_rephrase" and (outcome.prompt_tokens, outcome.new_tokens) == (111, 15)


def test_rephrasing_rows_of_an_earlier_run_changes_only_the_response() -> None:
    (first,) = make(stage(Scripted(), rows=clip_rows(rows_per_clip=1)))
    second = SelfRephrase(Upper(), gate=lambda row, clip: None, provenance={"llm": "other"})
    (outcome,) = make(second, first.row)
    changed = {"response", "first_response", "stage", "llm"}
    assert {k: v for k, v in outcome.row.items() if k not in changed} == {
        k: v for k, v in first.row.items() if k not in changed
    }
    assert outcome.row["response"] == first.row["response"].upper() and outcome.row["llm"] == "other"
    failing = SelfRephrase(Upper(Rejection("no answer tags", "x")), gate=lambda row, clip: None)
    (outcome,) = make(failing, first.row)
    assert outcome.verdict.reason == "no answer tags"


def test_a_judge_has_the_last_word() -> None:
    async def judge(row, *, seed):
        return Rejection("leak (judge)", row["id"]) if row["prompt_id"] == "who" else None

    outcomes = make(stage(Scripted(), judge=judge))
    assert {o.row["prompt_id"]: o.verdict and o.verdict.reason for o in outcomes} == {
        "who": "leak (judge)",
        "said": None,
    }


def test_a_clip_that_cannot_be_described_costs_its_own_rows() -> None:
    """As a plan of an earlier version may hold it."""
    for wrong in ({"segments": "abc"}, {"attributes": 5}, {"duration": 1e300}, {"segments": [{"start": 0}]}):
        wanted = clip_rows()({**CLIP, **wrong})
        assert [(w.id, w.item, w.verdict.reason) for w in wanted] == [
            (f"c1-p{k}", None, "unusable clip") for k in (0, 1)
        ]
        assert "row 'c1'" in wanted[0].verdict.detail or "attributes" in wanted[0].verdict.detail
