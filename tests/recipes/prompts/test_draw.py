"""The draw for one clip: what fits, evenness over kinds, and that it depends on the clip alone."""

import random
from collections import Counter
from typing import Any

import pytest

from nemo_desta.recipes.describe import NOT_AUDIBLE
from nemo_desta.recipes.prompts import Constraint, Prompt, PromptPool, answerable, draw, prompt_set
from nemo_desta.recipes.prompts.draw import fits, held_names

SPEECH = {"id": "a", "domain": "speech", "transcript": None, "attributes": {"gender": "male", "emotion": None}}


def test_only_answerable_prompts_fit() -> None:
    prompts = [
        Prompt("any", "?"),
        Prompt("gender", "g?", requires=("gender",)),
        Prompt("unknown", "e?", requires=("gender", "emotion")),
        Prompt("text", "t?", requires=("transcript",)),
        Prompt("count", "n?", requires=("number_of_speakers",)),
        Prompt("sound", "s?", domains=("sound",)),
    ]

    def fitting(row: dict) -> list[str]:
        names = [p.prompt_id for p in answerable(prompts, row)]
        assert sorted(names) == sorted(p.prompt_id for p in draw(prompts, row, 99, seed=0))
        return names

    assert fitting(SPEECH) == ["any", "gender"]
    assert fitting({**SPEECH, "transcript": "hi"}) == ["any", "gender", "text"]
    assert fitting({**SPEECH, "domain": "sound", "attributes": {}}) == ["any", "sound"]
    hidden = Prompt("age", "?", requires=("age",))
    assert answerable([hidden], {**SPEECH, "attributes": {"age": 31}}) == []
    assert draw([hidden], {**SPEECH, "attributes": {"age": 31}}, 1, seed=0) == []
    assert draw([hidden], {**SPEECH, "attributes": {"age": "thirties"}}, 1, seed=0) == [hidden]
    assert draw([hidden], {**SPEECH, "attributes": {"age": "thirties"}}, 1, seed=0, exclude=["age"]) == []
    talk = {**SPEECH, "segments": [{"start": 0, "end": 1, "speaker": "x", "transcript": "yes"}]}
    talk |= {"speakers": {"x": {"emotion": "sad"}}}
    assert fitting(talk) == ["any", "gender", "unknown", "text", "count"]


def test_draw_is_seeded_by_row_without_repeats_and_a_longer_one_extends_it() -> None:
    prompts = [Prompt(str(i), f"{i}?") for i in range(8)]
    rows = [{**SPEECH, "id": str(i)} for i in range(400)]
    for row in rows[:20]:
        three = draw(prompts, row, 3, seed=0)
        assert len(set(three)) == 3 and three[:2] == draw(prompts, dict(row), 2, seed=0)
        assert set(draw(prompts, row, 99, seed=0)) == set(prompts)
    first = Counter(draw(prompts, row, 1, seed=0)[0].prompt_id for row in rows)
    assert len(first) == 8 and max(first.values()) < 90
    assert [draw(prompts, row, 1, seed=1) for row in rows] != [draw(prompts, row, 1, seed=0) for row in rows]


def test_kinds_come_evenly_however_many_prompts_they_have_and_formats_half_the_time() -> None:
    words = Constraint("max_words", (5,))
    prompts = [Prompt(f"a{i}", "?", kind="a") for i in range(300)]
    prompts += [Prompt(f"b{i}", "?", kind="b") for i in range(10)]
    prompts += [Prompt(f"b{i}+", "?", kind="b", constraint=words) for i in range(90)]
    prompts += [Prompt("c", "?", kind="c")]
    rows = [{**SPEECH, "id": str(i)} for i in range(4200)]
    pool = PromptPool(prompts)
    drawn = [draw(pool, row, 1, seed=3)[0] for row in rows]
    counts = Counter(prompt.kind for prompt in drawn)
    # Three kinds, of which the third has one prompt instead of ten: shares 10 : 10 : 1.
    for kind, expected in (("a", 2000), ("b", 2000), ("c", 200)):
        assert abs(counts[kind] - expected) < 4 * expected**0.5
    constrained = sum(prompt.constraint is not None for prompt in drawn if prompt.kind == "b")
    assert abs(constrained - counts["b"] / 2) < 2 * counts["b"] ** 0.5
    plain = PromptPool(prompts, constraint_share=0.0)
    assert all(p.constraint is None for row in rows[:200] for p in draw(plain, row, 1, seed=3))


def test_the_composed_set_is_drawn_evenly_over_kinds_and_reproducibly() -> None:
    pool = prompt_set("composed")
    row = {"domain": "speech", "transcript": "Hi there.", "attributes": {"gender": "female", "emotion": "sad"}}
    rows = [{**row, "id": f"r{i}"} for i in range(2200)]
    drawn = [draw(pool, one, 2, seed=0) for one in rows]
    kinds = Counter(prompts[0].kind for prompts in drawn)
    assert len(kinds) == 11 and min(kinds.values()) > 140 and max(kinds.values()) < 260
    again = prompt_set("composed")
    assert [draw(again, one, 1, seed=0)[0] for one in reversed(rows)] == [two[0] for two in reversed(drawn)]
    assert len({prompts[0].prompt for prompts in drawn}) > 1000
    assert not any("{" + slot + "}" in p.prompt for two in drawn for p in two for slot in ("options", "value", "pair"))


def random_row(rng: random.Random) -> dict[str, Any]:
    """Rows with everything that a description reads, oddly filled."""
    odd = [None, "", "  ", "x", "31", 31, 3.5, True, [], [None, ""], ["a", "b"], [["c"]]]
    names = ["gender", "age", "exact_age", "min_age", "speaker_id", "name", "artist", "emotion"]

    def attributes() -> dict[str, Any] | None:
        picked = {name: rng.choice(odd) for name in rng.sample(names, rng.randrange(5))}
        return picked if rng.random() < 0.9 else None

    def segment() -> dict[str, Any]:
        return {"speaker": rng.choice([None, "s"]), "transcript": rng.choice(odd[:4]), "attributes": attributes()}

    row = {"id": str(rng.random()), "domain": "speech", "attributes": attributes(), "caption": rng.choice(odd)}
    row |= {"transcript": rng.choice(odd[:4]), "segments": [segment() for _ in range(rng.randrange(3))]}
    return row | {"speakers": {"s": attributes()} if rng.random() < 0.3 else None}


@pytest.mark.parametrize("exclude", [NOT_AUDIBLE, frozenset({"gender", "*_id"}), ["age"]])
def test_the_fast_look_at_a_row_agrees_with_the_description(exclude: Any) -> None:
    names = ["gender", "age", "exact_age", "min_age", "speaker_id", "name", "artist", "emotion", "number_of_speakers"]
    pool = PromptPool([Prompt(name, "?", requires=(name,)) for name in [*names, "transcript", "caption"]])
    rng = random.Random(0)
    seen = set()
    for _ in range(600):
        row = random_row(rng)
        held = held_names(row, exclude)
        expected = {p.prompt_id for p in pool if fits(p, "speech", held)}
        assert {p.prompt_id for p in draw(pool, row, 99, seed=0, exclude=exclude)} == expected, row
        seen.add(frozenset(expected))
    assert len(seen) > 50


def test_prompts_are_drawn_by_weight_and_kinds_by_their_mean_weight() -> None:
    prompts = [Prompt("often", "?", kind="a", weight=0.9), Prompt("seldom", "?", kind="a", weight=0.3)]
    prompts += [Prompt("other", "?", kind="b", weight=0.15)]
    pool = PromptPool(prompts)
    rows = [{"id": str(i), "domain": "speech", "attributes": {}} for i in range(4000)]
    drawn = Counter(pool.draw(row, 1, seed=0)[0].prompt_id for row in rows)
    # Kind a: 2 prompts x 0.6; kind b: 1 x 0.15. Within a 3 : 1.
    expected = {"often": 0.75 * 1.2 / 1.35, "seldom": 0.25 * 1.2 / 1.35, "other": 0.15 / 1.35}
    for name, share in expected.items():
        assert abs(drawn[name] / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5, name
    for row in rows[:50]:
        three = [prompt.prompt_id for prompt in pool.draw(row, 5, seed=0)]
        assert sorted(three) == ["often", "other", "seldom"]
        assert three[:1] == [prompt.prompt_id for prompt in pool.draw(row, 1, seed=0)]
