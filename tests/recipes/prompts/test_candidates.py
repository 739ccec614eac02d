"""Lists of prompts in all the shapes in which an LLM may write them."""

import json

import pytest

from nemo_desta.recipes.prompts.candidates import parse_candidates

WANTED = ["Who speaks?", 'Say "hello" back.', "Which?\nA. sad\nB. glad"]
NUMBERED = '1. Who speaks?\n2. Say "hello" back.\n3. Which?\n   A. sad\n   B. glad'


@pytest.mark.parametrize(
    "text",
    [
        f"<prompts>\n{NUMBERED}\n</prompts>",
        f"Sure! Here they are:\n<prompts>\n{NUMBERED}",
        f"{NUMBERED}\n\nLet me know if you need more.",
        f"Here are three prompts:\n\n{NUMBERED}\n</prompts> I hope these help!",
        f"I will use <prompts> tags, 1. like this.\n<PROMPTS>{NUMBERED}</PROMPTS>\n1. Not this",
        f"<prompts>\n{NUMBERED}\n\nThat is all.\n</prompts>",
        NUMBERED.replace("1. ", "(1) ").replace("2. ", "**2.** ").replace("3. ", "Prompt 3: "),
        NUMBERED.replace("1. ", "- ").replace("2. ", "* ").replace("3. ", "\u2022 "),
        "1. **Who speaks?**\n\n2. Say  \"hello\" back.\n\n3. 'Which?\n A. sad\n B. glad'",
        f"<prompts>{json.dumps(WANTED)}</prompts>",
        "```json\n" + json.dumps([{"prompt": text} for text in WANTED], indent=1) + "\n```",
        "```json\n" + json.dumps({"prompts": WANTED}) + "\n```",
    ],
)
def test_the_same_prompts_are_found_in_every_shape(text: str) -> None:
    assert parse_candidates(text) == WANTED


def test_plain_lines_and_quotation_marks() -> None:
    assert parse_candidates('<prompts>\n"Who?"\n\nWhat is it?\n</prompts>') == ["Who?", "What is it?"]
    assert parse_candidates("Here you go:\nWho?\nWhat?") == ["Who?", "What?"]
    assert parse_candidates('1. Return ["a", "b"] as JSON.\n2. Who?') == ['Return ["a", "b"] as JSON.', "Who?"]


def test_an_entry_at_the_open_end_of_a_cut_answer_is_dropped() -> None:
    assert parse_candidates("<prompts>\n1. Who?\n2. Which of th", truncated=True) == ["Who?"]
    assert parse_candidates("<prompts>\n1. Who?\n2. Which?</prompts> And", truncated=True) == ["Who?", "Which?"]


@pytest.mark.parametrize("text", ["", "  \n", "<prompts></prompts>", "<prompts>\n1.\n2. \n</prompts>", "[]", "List:"])
def test_nothing_is_found_where_nothing_is(text: str) -> None:
    assert parse_candidates(text) == []
