"""How items are asked and answers become predictions; part of every result."""

from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

from nemo_desta.errors import ConfigError
from nemo_desta.evaluation import controls, intervals, prompts


@dataclass(frozen=True)
class Thing:
    question: str = "What is it?"
    choices: tuple[str, ...] = ("a dog", "a cat", "a bird")
    audio: Path | None = Path("x.wav")
    fields: dict = field(default_factory=dict)


@pytest.mark.parametrize("name", prompts.VARIANTS)
def test_every_variant_asks_about_the_clip_once_and_names_every_option(name):
    asked = prompts.messages(Thing(), prompts.variant(name), "<A>")
    holder = [message for message in asked if message.get("audios")]
    assert len(holder) == 1 and holder[0]["content"].count("<A>") == 1
    assert holder[0]["audios"] == [{"audio": "x.wav"}]
    assert "What is it?" in holder[0]["content"]
    if name != "question":
        assert all(choice in holder[0]["content"] for choice in Thing().choices)


@pytest.mark.parametrize("name", prompts.VARIANTS)
def test_an_item_without_a_clip_is_asked_in_words_alone(name):
    asked = prompts.messages(Thing(audio=None), prompts.variant(name), "<A>")
    assert not any("audios" in message or "<A>" in message["content"] for message in asked)


@pytest.mark.parametrize(
    ("name", "answer", "prediction"),
    [
        ("question", "  a dog. ", "a dog."),
        ("desta25_sentence", 'The correct answer is: "a cat".', "a cat"),
        ("desta25_sentence", "Well. The correct answer is: a cat", "a cat"),
        ("desta25_sentence", "a cat", "a cat"),
        ("alarm_index", "<answer>2</answer>", "a bird"),
        ("alarm_index", "I think <answer> 0 </answer>, yes", "a dog"),
        ("alarm_index", "1", "a cat"),
        ("alarm_index", "<answer>0</answer>? No: <answer>\n1</answer>", "a cat"),  # the last one, as ALARM
        ("alarm_index", "so <answer> 2", "a bird"),  # cut at the limit of tokens
        ("alarm_index", "<answer>7</answer>", "7"),
        ("alarm_index", "<answer>a cat</answer>", "a cat"),
        ("alarm_index", "no idea", "no idea"),
    ],
)
def test_extraction(name, answer, prediction):
    assert prompts.variant(name).extract(answer, Thing()) == prediction


def test_the_hash_changes_with_prompt_and_scorer_and_with_nothing_else():
    found = {(v, m.__name__): prompts.fingerprint([prompts.variant(v)], m)
             for v in prompts.VARIANTS for m in (controls, intervals)}  # fmt: skip
    assert len(set(found.values())) == len(found)
    assert prompts.fingerprint([prompts.variant("letters")], controls) == found["letters", controls.__name__]
    assert isinstance(controls, ModuleType)


def test_an_unknown_variant_is_named():
    with pytest.raises(ConfigError, match="Did you mean 'letters'"):
        prompts.variant("leters")
