"""Prompts: the starter pool, prompt files, and the draw for one clip."""

import json
from collections import Counter
from pathlib import Path

import pytest

from nemo_desta.recipes.prompts import Prompt, answerable, draw, load_prompts, parse_prompts, starter_prompts

SPEECH = {"id": "a", "domain": "speech", "transcript": None, "attributes": {"gender": "male", "emotion": None}}


def test_starter_pool_serves_every_domain_without_repeating_itself() -> None:
    pool = starter_prompts()
    assert 40 <= len(pool) <= 60
    assert len({p.prompt_id for p in pool}) == len({p.prompt for p in pool}) == len(pool)
    for domain in ("speech", "sound", "music"):
        bare = {"id": "x", "domain": domain, "transcript": None, "attributes": {}}
        assert len(answerable(pool, bare)) >= 12


def test_only_answerable_prompts_fit() -> None:
    prompts = [
        Prompt("any", "?"),
        Prompt("gender", "g?", requires=("gender",)),
        Prompt("unknown", "e?", requires=("gender", "emotion")),
        Prompt("text", "t?", requires=("transcript",)),
        Prompt("sound", "s?", domains=("sound",)),
    ]

    def fitting(row: dict) -> list[str]:
        return [p.prompt_id for p in answerable(prompts, row)]

    assert fitting(SPEECH) == ["any", "gender"]
    assert fitting({**SPEECH, "transcript": "hi"}) == ["any", "gender", "text"]
    assert fitting({**SPEECH, "domain": "sound", "attributes": {}}) == ["any", "sound"]
    hidden = Prompt("age", "?", requires=("age",))
    assert answerable([hidden], {**SPEECH, "attributes": {"age": 31}}) == []
    talk = {**SPEECH, "segments": [{"start": 0, "end": 1, "speaker": "x", "transcript": "yes"}]}
    talk |= {"speakers": {"x": {"emotion": "sad"}}}
    assert fitting(talk) == ["any", "gender", "unknown", "text"]


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


def test_prompt_files_are_read_as_written(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(
        json.dumps({"prompt_id": "g", "prompt": "Who?", "tasks": ["gender"], "requires": ["gender"]}) + "\n"
    )
    assert load_prompts(file) == [Prompt("g", "Who?", ("gender",), ("gender",))]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"prompt_id": "x", "prompt": "?", "require": ["gender"]}, "prompts:2: unknown field 'require'"),
        ({"prompt_id": "x"}, "prompts:2: prompt must be text, found None"),
        ({"prompt_id": "x", "prompt": "?", "requires": "gender"}, "prompts:2: requires must be a list of names"),
        ({"prompt_id": "a", "prompt": "?"}, "prompts:2: prompt_id 'a' was seen before"),
        ("?", "prompts:2: expected one object per prompt, found a str"),
    ],
)
def test_bad_prompts_are_named(entry: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_prompts([{"prompt_id": "a", "prompt": "?"}, entry])


def test_no_prompts_is_an_error() -> None:
    with pytest.raises(ValueError, match="no prompts"):
        parse_prompts([])
