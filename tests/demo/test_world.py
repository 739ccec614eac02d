"""The closed world: true values of rows, parsing of answers, prompts and formats."""

import json
import random
from pathlib import Path

import pytest

import nemo_desta.demo
from nemo_desta.demo.pool import rephrase_pool
from nemo_desta.demo.prompts import FORMATS, WORDINGS, YES_NO, apply_format, follows_format, make_prompt
from nemo_desta.demo.prompts import true_answer as answer_of
from nemo_desta.demo.world import TASKS, gold, parse_answer, parse_yes_no, tasks_of
from nemo_desta.recipes.prompts import parse_prompts

ASSETS = Path(nemo_desta.demo.__file__).parent / "assets"

SPEECH = {
    "id": "a",
    "domain": "speech",
    "duration": 0.4,
    "transcript": "seven",
    "attributes": {"gender": "male", "accent": "French (Belgium)", "digit": 7},
}
SOUND = {
    "id": "b",
    "domain": "sound",
    "duration": 5.0,
    "transcript": None,
    "attributes": {"sound_class": "sea waves", "sound_group": "nature"},
}


def test_gold_reads_attributes_transcript_and_domain():
    assert {task: gold(SPEECH, task) for task in tasks_of(SPEECH)} == {
        "gender": "male",
        "accent": "French (Belgium)",
        "digit": "seven",
        "word": "seven",
        "transcript": "seven",
        "domain": "speech",
    }
    assert gold(SPEECH, "emotion") is None
    assert tasks_of(SOUND) == ["sound_class", "sound_group", "domain"]


@pytest.mark.parametrize(
    ("task", "answer", "value"),
    [
        ("gender", "The speaker is female.", "female"),
        ("gender", "THE SPEAKER IS MALE.", "male"),
        ("accent", "The accent is North American English.", "North American English"),
        ("accent", '{"accent": "French (Belgium)"}', "French (Belgium)"),
        ("digit", "The number is 7.", "seven"),
        ("digit", "The digit is seven or eight.", None),
        ("digit", "Done.", None),
        ("word", "No, the word is stop.", "stop"),
        ("emotion", "<think>\nIs it sad?\n</think>\n\nThe speaker sounds happy.", "happy"),
        ("transcript", "The speaker says: Kids are talking by the door.", "Kids are talking by the door"),
        ("transcript", '{"transcript": "zero"}', "zero"),
        ("sound_class", "", None),
    ],
)
def test_parse_answer(task, answer, value):
    assert parse_answer(task, answer) == value


def test_parse_yes_no_takes_the_first_verdict():
    assert parse_yes_no("<think>\nno\n</think>\n\nYes, the word is no.") == "yes"
    assert parse_yes_no("NO, THE SPEAKER IS MALE.") == "no"
    assert parse_yes_no("The speaker is male.") is None


def test_every_true_answer_parses_to_the_truth_in_every_format():
    for row in (SPEECH, SOUND):
        for task in tasks_of(row):
            for wording in range(len(WORDINGS[task])):
                for format in FORMATS if task != "transcript" else ("plain", "json"):
                    prompt = make_prompt(task, format=format, wording=wording)
                    answer = answer_of(row, prompt)
                    assert parse_answer(task, answer) == gold(row, task), (prompt, answer)
                    assert follows_format(format, answer), (prompt, answer)


def test_formats_are_told_apart():
    written = {name: apply_format(name, "The speaker is male.", {"gender": "male"}, "Hm.") for name in FORMATS}
    for asked in set(FORMATS) - {"plain"}:
        assert [name for name, text in written.items() if follows_format(asked, text)] == [asked]
    assert not follows_format("plain", written["prefix"])


def test_yes_no_answers_say_yes_exactly_for_the_asked_value():
    rng = random.Random(0)
    verdicts = []
    for _ in range(40):
        prompt = make_prompt("gender", "yes_no", truth="male", rng=rng)
        verdicts.append(parse_yes_no(answer_of(SPEECH, prompt)))
        assert (verdicts[-1] == "yes") == (prompt.asked == "male")
    assert set(verdicts) == {"yes", "no"}


def test_every_task_has_wordings_with_one_held_out_and_distinct_questions():
    assert set(WORDINGS) == set(TASKS)
    assert set(YES_NO) <= set(TASKS)
    for pairs in WORDINGS.values():
        assert len({question for question, _ in pairs}) == len(pairs) >= 3


def test_the_shipped_prompts_are_the_pool():
    shipped = [json.loads(line) for line in (ASSETS / "prompts.jsonl").read_text().splitlines()]
    assert parse_prompts(shipped) == rephrase_pool()
