"""Prompts from mappings and files."""

import json
from pathlib import Path

import pytest

from nemo_desta.recipes.prompts import Constraint, Prompt, load_prompts, parse_prompts


def test_prompt_files_are_read_as_written(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    lines = [
        {"prompt_id": "g", "prompt": "Who?", "tasks": ["gender"], "requires": ["gender"]},
        {"prompt_id": "w", "prompt": "Short!", "kind": "format", "constraint": ["max_words", [5]]},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    short = Prompt("w", "Short!", kind="format", constraint=Constraint("max_words", (5,)))
    assert load_prompts(file) == [Prompt("g", "Who?", ("gender",), ("gender",)), short]


def test_a_group_shares_its_fields_and_ids_follow_from_the_texts(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    group = "- kind: ask\n  requires: [gender]\n  domains: [speech]\n  prompts:\n"
    file.write_text(group + "    - Who is it?\n    - Which gender?\n", encoding="utf-8")
    first, second = load_prompts(file)
    assert (first.prompt, first.kind, first.requires, first.domains) == ("Who is it?", "ask", ("gender",), ("speech",))
    assert first.prompt_id.startswith("speech-ask-gender-") and first.prompt_id != second.prompt_id
    file.write_text(group + "    - Which gender?\n    - Another?\n    - Who is it?\n", encoding="utf-8")
    assert load_prompts(file)[2] == first and load_prompts(file)[0] == second


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"prompt_id": "x", "prompt": "?", "require": ["gender"]}, "prompts:2: unknown field 'require'"),
        ({"prompt_id": "x"}, "prompts:2: prompt must be text, found None"),
        ({"prompt_id": "x", "prompt": "?", "requires": "gender"}, "prompts:2: requires must be a list of names"),
        ({"prompt_id": "x", "prompt": "?", "kind": 3}, "prompts:2: kind must be text, found 3"),
        ({"prompt_id": "a", "prompt": "?"}, "prompts:2: prompt_id 'a' was seen before"),
        ({"prompt_id": "x", "prompt": "{options}"}, "prompts:2: {options} is filled from the first name of requires"),
        ({"prompts": "?"}, "prompts:2: prompts must be a list of texts"),
        ({"prompts": ["ok?", 3]}, "prompts:2, text 2: prompt must be text, found 3"),
        ({"prompts": ["?"], "prompt_id": "x"}, "prompts:2: a group of prompts has no 'prompt_id'"),
        ({"prompts": ["?"], "constraint": {"name": "shout"}}, "prompts:2, text 1: no constraint 'shout'"),
        ({"prompts": ["?"], "constraint": "shout"}, "prompts:2, text 1: a constraint is"),
        ("?", "prompts:2: expected one object per prompt, found a str"),
    ],
)
def test_bad_prompts_are_named(entry: object, message: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_prompts([{"prompt_id": "a", "prompt": "?"}, entry])
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b'{"prompt_id": "a", "prompt": "?"}\n{"prom', r"p\.jsonl:2: not JSON"),
        ("p.jsonl", b'{"prompt_id": "a", "prompt": "\xe9"}', r"p\.jsonl: not UTF-8 \(byte 30 is 0xe9\)"),
        ("p.yaml", b"- kind: [", r"p\.yaml: not YAML"),
        ("p.yaml", b"kind: ask", r"p\.yaml: expected a list of prompts or groups, found a dict"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_prompts(tmp_path / name)


def test_no_prompts_is_an_error() -> None:
    with pytest.raises(ValueError, match="no prompts"):
        parse_prompts([])
