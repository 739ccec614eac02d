"""A recipe's ``check=true`` and its mistakes: each is refused in one line, before an LLM is loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from nemo_desta.errors import ConfigError
from nemo_desta.recipes.run import run_recipe
from nemo_desta.user_errors import one_line

WHO = {"prompt_id": "who", "prompt": "Who?", "requires": ["gender"]}


def given(root: Path, llm: Any, **more: Any) -> dict[str, Any]:
    base = {"corpus": "m.jsonl", "data_root": str(root), "llm": str(llm), "prompts": [WHO], "check": True}
    return {**base, "output": str(root / "out"), "progress": False, **more}


def refused(*args: Any, **more: Any) -> str:
    with pytest.raises(Exception) as caught:
        run_recipe(given(*args, **more))
    line = one_line(caught.value)
    assert line is not None and "\n" not in line, repr(caught.value)
    return line


def test_an_llm_without_a_tokenizer_here_is_refused(corpus: Path, llm_folder: Path) -> None:
    assert refused(corpus, "nollm") == "llm: no folder 'nollm' (and no hub id, which is owner/name)"
    assert "hf download some/llm" in refused(corpus, "some/llm") and "hf auth login" in refused(corpus, "some/llm")
    (corpus / "empty").mkdir()
    assert f"llm: no usable tokenizer at '{corpus}/empty'" in refused(corpus, corpus / "empty")
    server = {"name": "openai", "base_url": "http://127.0.0.1:1/v1"}
    assert refused(corpus, "gpt-x", engine=server) == "llm: no folder 'gpt-x' (and no hub id, which is owner/name)"
    assert run_recipe(given(corpus, "gpt-x", engine={**server, "api": "chat"})).ok
    assert run_recipe(given(corpus, "gpt-x", engine=server, tokenizer=str(llm_folder))).ok
    assert "unknown engine 'hff'. Did you mean 'hf'?" in refused(corpus, llm_folder, engine={"name": "hff"})


def test_count_needs_no_llm_and_shows_clips_and_hours(corpus: Path) -> None:
    base = {"corpus": "m.jsonl", "data_root": str(corpus), "count": True}
    told = run_recipe({**base, "llm": "???", "output": "???"})
    assert told.splitlines()[:2] == ["set  rows  hours", "m      10   0.00"]
    assert "m: 1 clips with missing audio left out" in told and "m: 1 clips with corrupt audio left out" in told
    assert run_recipe({**base, "audio": {"check": "off"}}).splitlines()[1].split() == ["m", "12", "0.00"]
    named = {"name": "esc50", "version": "1", "title": "E", "licence": "mine", "reader": {"type": "jsonl"}}
    (corpus / "esc.yaml").write_text(json.dumps({**named, "reader": {"type": "jsonl", "files": "m.jsonl"}}))
    told = run_recipe({**base, "corpus": str(corpus / "esc.yaml")})
    assert told.splitlines()[1].split() == ["esc50", "10", "0.00", "2,000", "2.78"]
    with pytest.raises(ConfigError, match="desta train count=true"):
        run_recipe({"rows": "x.jsonl", "count": True, "rephrase": {"enabled": True}})


def test_prompts_that_nothing_satisfies_are_refused(corpus: Path, llm_folder: Path) -> None:
    odd = {"prompt_id": "odd", "prompt": "How?", "requires": ["gendr"]}
    line = refused(corpus, llm_folder, prompts=[WHO, odd])
    assert line.startswith(
        "prompt 'odd' requires 'gendr', which no clip has. Did you mean 'gender'? Known: gender, tr"
    )
    other = {"prompt_id": "felt", "prompt": "What is felt?", "requires": ["emotion"]}  # our own pool has this name
    assert "prompts that fit no clip: 1 of 2" in str(run_recipe(given(corpus, llm_folder, prompts=[WHO, other])))
    assert "none of 1 prompts fits a clip" in refused(corpus, llm_folder, prompts=[other])
    assert "none of 1 prompts fits" in refused(corpus, llm_folder, prompts=[{**WHO, "domains": ["music"]}])


def test_splits_that_are_left_out_are_counted(corpus: Path, llm_folder: Path) -> None:
    lines = (corpus / "m.jsonl").read_text().splitlines()
    changed = [line.replace('"train"', '"test"') if number < 5 else line for number, line in enumerate(lines)]
    (corpus / "m.jsonl").write_text("\n".join(changed) + "\n")
    result = run_recipe(given(corpus, llm_folder))
    assert result.units == 7
    assert "m: left out: test 5 clips" in str(result)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "p.yaml: expected a list of prompts or groups, found a NoneType"),
        ("[]", "p.yaml: no prompts"),
        ("- {prompt_id: a, prompt: 'x', constraint: {name: max_word, args: [3]}}", "no constraint 'max_word'"),
        ("- {prompt_id: a, prompt: [1", "p.yaml: not YAML"),
    ],
)
def test_a_wrong_prompt_file_is_one_line(corpus: Path, llm_folder: Path, content: str, part: str) -> None:
    (corpus / "p.yaml").write_text(content)
    assert part in refused(corpus, llm_folder, prompts=str(corpus / "p.yaml"))


def test_a_list_for_the_values_of_a_card_is_one_line(corpus: Path, llm_folder: Path) -> None:
    line = refused(corpus, llm_folder, card={"attributes": {"emotion": "{e}"}, "values": {"emotion": ["happy"]}})
    assert "values.emotion" in line and "['happy']" in line


def test_a_check_without_a_row_to_make_fails(corpus: Path, llm_folder: Path) -> None:
    for path in (corpus / "audio").iterdir():
        path.unlink()
    result = run_recipe(given(corpus, llm_folder))
    assert not result.ok and result.unusable == {"missing audio": 12}


@pytest.mark.parametrize(
    "key", ["corpus", "data_root", "splits", "prompts", "engine", "decontaminate", "card", "runner"]
)
@pytest.mark.parametrize("value", [5, True, "soon", ["x"], {"x": 1}, [], {}])
def test_a_wrong_kind_of_value_is_no_traceback(corpus: Path, llm_folder: Path, key: str, value: Any) -> None:
    try:
        run_recipe(given(corpus, llm_folder, **{key: value}))
    except Exception as error:
        line = one_line(error)
        assert line is not None and "\n" not in line, f"{key}={value!r}: {error!r}"


def test_the_check_leaves_the_llm_of_an_engine_of_ones_own_to_that_engine(corpus: Path) -> None:
    engine = {"_target_": f"{__name__}.OwnEngine", "command": ["x"]}
    assert run_recipe(given(corpus, "my-llm-8b", engine=engine)).ok


class OwnEngine:
    def __init__(self, llm: str, *, command: list[str]) -> None:
        raise AssertionError("a check starts no engine")


def test_the_check_and_the_folder_say_what_system_prompt_the_template_adds(corpus: Path, llm_folder: Path) -> None:
    folder = corpus / "llm"
    shutil.copytree(llm_folder, folder)
    tokenizer = AutoTokenizer.from_pretrained(llm_folder)
    tokenizer.chat_template = (
        "{% if messages[0].role != 'system' %}<s>Be of help.</s>{% endif %}"
        "{% for m in messages %}{% if m.role == 'system' %}<s>{{ m.content }}</s>{% else %}{{ m.content }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    said = "adds a system prompt to every conversation without one: 'Be of help.'; request.system=\"\" leaves it out"
    assert said in str(run_recipe(given(corpus, folder)))
    for llm, request in ((folder, {"system": ""}), (llm_folder, {})):
        assert "system prompt" not in str(run_recipe(given(corpus, llm, request=request)))
    short = {"request": {"sampling": {"max_new_tokens": 2}}, "max_attempts": 1, "report": False}
    run_recipe(given(corpus, folder, check=False, **short))
    assert json.loads((corpus / "out/recipe.json").read_text())["default_system"] == "Be of help."
