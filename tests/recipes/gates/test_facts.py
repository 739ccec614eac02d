"""The fact check: right, wrong and hedged answers."""

from typing import Any

import pytest

from nemo_desta.config import parse
from nemo_desta.errors import ConfigError
from nemo_desta.recipes.gates import GatesConfig, RowGates, value_sets

CLIPS: list[dict[str, Any]] = [
    {"id": "a", "attributes": {"gender": "male", "emotion": "sad", "age": "young adult", "digit": 3, "snr": 10.5}},
    {"id": "b", "attributes": {"gender": "female", "emotion": ["happy", "calm"], "age": "adult", "digit": 4}},
    {"id": "c", "attributes": {"gender": None, "emotion": "angry", "city": "Rome"}},
]
GATES = RowGates(parse(GatesConfig, {"facts": {}, "leak": False}, "gates"), values=value_sets(CLIPS))


def wrong(answer: str, *asked: str, clip: dict[str, Any] = CLIPS[0], gates: RowGates = GATES) -> bool:
    row = {"prompt": "Answer the question, please.", "response": answer, "prompt_requires": list(asked)}
    verdict = gates.check(row, clip)
    assert verdict is None or verdict.reason == "contradicts attributes"
    return verdict is not None


def test_value_sets_are_closed_sets_in_words() -> None:
    assert value_sets(CLIPS) == {
        "gender": {"male", "female"},
        "emotion": {"sad", "happy", "calm", "angry"},
        "age": {"young adult", "adult"},
        "digit": {"3", "4"},
        "city": {"rome"},
    }
    assert "city" not in value_sets([{"attributes": {"city": f"town {n}"}} for n in range(20)], max_values=10)


def test_right_answers_pass() -> None:
    assert not wrong("The speaker is male.", "gender")
    assert not wrong("A man.", "gender")
    assert not wrong("MALE", "gender")
    assert not wrong("He sounds sad, as a young adult may.", "emotion", "age")
    assert not wrong("3", "digit")
    assert not wrong("Calm.", "emotion", clip=CLIPS[1])


def test_wrong_answers_do_not() -> None:
    assert wrong("The speaker is female.", "gender")
    assert wrong("A woman.", "gender")
    assert wrong('{"gender": "Female"}', "gender")
    assert wrong("He sounds really happy!", "emotion")
    assert wrong("An adult.", "age")
    assert wrong("4", "digit")
    assert wrong("Sad.", "emotion", clip=CLIPS[1])
    assert wrong("The speaker is not male but female.", "gender")


def test_negated_hedged_and_complete_answers_pass() -> None:
    assert not wrong("It is not a woman who speaks.", "gender")
    assert not wrong("The speaker isn't female.", "gender")
    assert not wrong("He is sad rather than happy.", "emotion")
    assert not wrong("The speaker is either angry or calm.", "emotion")
    assert not wrong("It might be a woman.", "gender")
    assert not wrong("A man, who talks to a woman.", "gender")
    assert not wrong("A voice is heard.", "gender")
    assert not wrong("Femaleness is not the point.", "gender")


def test_only_what_the_prompt_asks_about_and_the_clip_knows() -> None:
    assert not wrong("The speaker is female.")
    assert not wrong("The speaker is female.", "emotion")
    assert not wrong("The speaker is female.", "gender", clip=CLIPS[2])
    assert not wrong("London.", "city", clip=CLIPS[2])


def test_it_can_be_narrowed_and_taught() -> None:
    facts = {"attributes": ["emotion"], "synonyms": {"emotion": {"happy": ["over the moon"]}}, "values": {}}
    gates = RowGates(parse(GatesConfig, {"facts": facts, "leak": False}, "gates"), values=value_sets(CLIPS))
    assert wrong("He is over the moon.", "emotion", gates=gates)
    assert not wrong("A woman.", "gender", gates=gates)
    given = parse(GatesConfig, {"facts": {"values": {"gender": ["male", "female"]}}}, "gates")
    assert wrong("A woman.", "gender", gates=RowGates(given))


def test_config_is_checked() -> None:
    with pytest.raises(ConfigError, match="facts.values is empty"):
        RowGates(parse(GatesConfig, {"facts": {}}, "gates"))
    with pytest.raises(ConfigError, match="'mood' is no attribute of the corpus; it has age, city"):
        RowGates(parse(GatesConfig, {"facts": {"attributes": ["mood"]}}, "gates"), values=value_sets(CLIPS))
