"""Multiple choice and yes-no from a clip's attributes."""

import re
from collections import Counter
from typing import Any

import pytest

from nemo_desta.recipes.prompts import Prompt, PromptPool, answerable, draw
from nemo_desta.recipes.prompts.fill import fill, true_values


def template(text: str, name: str = "emotion") -> Prompt:
    return Prompt("t", text, requires=(name,))


def clip(i: int, **attributes: Any) -> dict[str, Any]:
    return {"id": f"r{i}", "domain": "speech", "transcript": None, "attributes": attributes}


def options_of(text: str) -> list[str]:
    return re.findall(r"^\(?[A-E][.)] (.+)$", text, flags=re.MULTILINE)


def test_the_right_option_is_there_once_and_evenly_at_every_place() -> None:
    places: Counter[tuple[int, int]] = Counter()
    for i in range(3000):
        filled = fill(template("Which mood? {options} Pick one."), clip(i, emotion="sad"), seed=0)
        lines = filled.prompt.splitlines()
        assert lines[0] == "Which mood?" and lines[-1] == "Pick one."
        options = options_of(filled.prompt)
        assert len(options) == len(set(options)) == len(lines) - 2 and options.count("sad") == 1
        assert not {"unhappy", "sorrowful"} & set(options)
        places[len(options), options.index("sad")] += 1
    assert {count for count, _ in places} == {3, 4, 5}
    for count in (3, 4, 5):
        each = [places[count, place] for place in range(count)]
        assert max(each) - min(each) < 6 * (sum(each) / count) ** 0.5


def test_filling_follows_from_seed_and_row_and_says_nothing_else() -> None:
    prompt = template("Which? {options}")
    one = fill(prompt, clip(1, emotion="sad"), seed=0)
    assert one == fill(prompt, {**clip(1, emotion="sad"), "extra": 3}, seed=0)
    assert len({fill(prompt, clip(i, emotion="sad"), seed=0).prompt for i in range(20)}) > 10
    assert one != fill(prompt, clip(1, emotion="sad"), seed=1)
    assert (one.prompt_id, one.tasks, one.requires, one.constraint) == ("t", (), ("emotion",), None)


def test_yes_no_asks_for_the_true_value_half_of_the_time() -> None:
    asked = [fill(template('Is it "{value}"?'), clip(i, emotion="angry"), seed=0).prompt for i in range(1000)]
    right = sum(text == 'Is it "angry"?' for text in asked)
    assert 430 < right < 570 and len(set(asked)) > 6


def test_none_of_these_stands_last_and_is_right_as_often_as_any_other_option() -> None:
    left_out, expected = 0, 0.0
    for i in range(2000):
        options = options_of(fill(template("{options_or_none}"), clip(i, emotion="sad"), seed=0).prompt)
        assert options[-1] == "None of these" and len(options) >= 3
        left_out += "sad" not in options
        expected += 1 / len(options)
    assert abs(left_out - expected) < 80


def test_choices_and_pairs_are_sentences() -> None:
    for i in range(50):
        assert fill(template("{pair}", "gender"), clip(i, gender="male"), seed=0).prompt in (
            "male or female",
            "female or male",
        )
        three = fill(template("Is it {choices}?", "tempo"), clip(i, tempo="slow"), seed=0).prompt
        assert re.fullmatch(r"Is it (?:[a-z ]+, ){2,4}or [a-z ]+\?", three) and "slow" in three


@pytest.mark.parametrize(
    ("name", "value", "never"),
    [
        ("accent", "North American English", {"American English", "Canadian English", "American"}),
        ("accent", "Scottish English", {"British English", "English", "Scottish"}),
        ("instrument", "acoustic guitar", {"guitar"}),
        ("sound_class", "Dog barking", {"dog"}),
        ("sound_class", ["rain", "thunder"], {"water drops", "water pouring", "thunderstorm"}),
        ("speaking_speed", "medium", {"normal", "moderate"}),
    ],
)
def test_what_could_be_right_as_well_is_no_wrong_option(name: str, value: Any, never: set[str]) -> None:
    shown = set()
    for i in range(300):
        shown |= set(options_of(fill(template("{options}", name), clip(i, **{name: value}), seed=0).prompt))
    assert not shown & never and len(shown) >= 3


def test_the_right_option_does_not_stand_out_by_its_looks() -> None:
    for i in range(30):
        sounds = options_of(
            fill(template("{options}", "sound_class"), clip(i, sound_class="Dog_barking"), seed=0).prompt
        )
        assert "dog barking" in sounds
        digits = options_of(fill(template("{options}", "digit"), clip(i, digit=7), seed=0).prompt)
        assert "7" in digits and all(text.isdigit() for text in digits)
        codes = options_of(fill(template("{options}", "language"), clip(i, language="de"), seed=0).prompt)
        assert "de" in codes and all(len(text) == 2 for text in codes)


def test_values_of_the_caller_replace_the_known_ones() -> None:
    values = {"emotion": ["joy", "grief", "rage"], "species": ["owl", "crow"]}
    pool = PromptPool([template("{options}"), Prompt("s", "{pair}", requires=("species",))], values=values)
    seen = set()
    for i in range(40):
        by_id = {p.prompt_id: p.prompt for p in draw(pool, clip(i, emotion="grief", species="owl"), 2, seed=0)}
        seen |= set(options_of(by_id["t"]))
        assert by_id["s"] in ("owl or crow", "crow or owl")
    assert seen == {"joy", "grief", "rage"}


def test_a_template_without_an_honest_question_is_not_drawn() -> None:
    prompts = [template("{options}"), Prompt("plain", "?")]
    row = clip(0, emotion="sad")
    row["segments"] = [
        {"speaker": name, "transcript": "hi", "attributes": {"emotion": mood}}
        for name, mood in (("x", "sad"), ("y", "happy"))
    ]
    assert true_values(row, "emotion") == [] and true_values(row, "number_of_speakers") == ["2"]
    assert draw(prompts, row, 2, seed=0) == answerable(prompts, row) == [prompts[1]]
    unknown = Prompt("u", "{options}", requires=("pitch",))
    assert draw([unknown], clip(0, pitch="213 Hz"), 1, seed=0) == answerable([unknown], clip(0, pitch="213 Hz")) == []
    assert fill(template("{options}", "shoe_size"), clip(0, shoe_size="44"), seed=0) is None
