"""The probe keeps prompts that the LLM answers rightly: a scripted LLM reads some prompts and evades others."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_desta.errors import ConfigError
from nemo_desta.recipes.build import fingerprint
from nemo_desta.recipes.commands import run_command
from nemo_desta.recipes.engines.base import Generation, Request
from nemo_desta.recipes.probe import Probed, Score
from nemo_desta.recipes.prompts import prompt_set
from nemo_desta.recipes.prompts.prompt import parse_prompts

PROMPTS = [
    {"prompt_id": "right", "prompt": "Man or woman?", "requires": ["gender"], "kind": "ask"},
    {"prompt_id": "evades", "prompt": "Which gender?", "requires": ["gender"], "kind": "ask"},
    {"prompt_id": "wrong", "prompt": "He or she?", "requires": ["gender"], "kind": "ask"},
    {
        "prompt_id": "small",
        "prompt": "lower case?",
        "requires": ["gender"],
        "kind": "ask",
        "constraint": {"name": "lower_case"},
    },
    {"prompt_id": "never", "prompt": "Which sound?", "requires": ["sound_class"], "kind": "ask"},
]


class Scripted:
    """An engine whose answers depend on the prompt."""

    name, revision, concurrency, prompts = "scripted", None, 4, None

    def __init__(self, llm: str) -> None:
        del llm

    async def generate(self, request: Request) -> Generation:
        description, prompt = request.messages[-1]["content"].split("\n")
        true, other = ("woman", "man") if "Gender: female" in description else ("man", "woman")
        said = {"Man or woman?": f"A {true}.", "Which gender?": "The gender is unknown.", "He or she?": f"A {other}."}
        return Generation(said.get(prompt, f"A {true}."), False)

    async def close(self) -> None:
        """Nothing to free."""


def settings(root: Path, **more: Any) -> dict[str, Any]:
    base = {"recipe": "probe", "corpus": "m.jsonl", "data_root": str(root), "llm": "x", "prompts": PROMPTS}
    base |= {"engine": {"_target_": f"{__name__}.Scripted"}, "output": str(root / "pool.yaml"), "progress": False}
    return {**base, **more}


def test_prompts_that_are_answered_rightly_are_written(corpus: Path) -> None:
    probed = run_command(settings(corpus, answers_per_prompt=6))
    scores = {prompt.prompt_id: (score.right, score.asked) for prompt, score in probed.prompts}
    assert scores == {"right": (6, 6), "evades": (0, 6), "wrong": (0, 6), "small": (0, 6)}
    assert [prompt.prompt_id for prompt in prompt_set(str(corpus / "pool.yaml"))] == ["right"]
    text = (corpus / "pool.yaml").read_text()
    assert "# ask, gender: 33% [16%, 56%] of 18" in text and "# ask, gender, format lower_case: 0%" in text
    assert "of 6: Which gender?" in text and yaml.safe_load(text)[0]["requires"] == ["gender"]
    assert "1 of 4 prompts" in str(probed)
    (prompt,) = prompt_set(str(corpus / "pool.yaml"))
    assert prompt.weight == 0.875 and prompt.probed == (6, 6)  # (6 + 1) / (6 + 2)


def test_lengths_that_the_corpus_does_not_state_are_read_from_the_files(corpus: Path) -> None:
    rows = [json.loads(line) for line in (corpus / "m.jsonl").read_text().splitlines()]
    for row in rows:
        del row["duration"]
    (corpus / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    probed = run_command(settings(corpus, answers_per_prompt=11))
    assert probed.prompts[0][1] == Score(10, 10)  # neither the missing nor the cut clip
    for clip in (corpus / "audio").iterdir():
        clip.unlink()
    with pytest.raises(ConfigError, match="no prompt fits a clip: of 12 clips of m, none has usable audio"):
        run_command(settings(corpus))


def test_a_recipe_and_its_report_know_the_scores_of_the_probe(corpus: Path) -> None:
    from nemo_desta.recipes.report.compute import compute_stats

    run_command(settings(corpus, answers_per_prompt=6))
    recipe = {key: value for key, value in settings(corpus).items() if key != "progress"}
    recipe |= {"recipe": "generate", "prompts": str(corpus / "pool.yaml"), "output": str(corpus / "rows")}
    run_command({**recipe, "progress": False, "gates": {"language": None, "duplicates": {"exact": False}}})
    stats = compute_stats(corpus / "rows")
    line = stats["outcomes"]["by_prompt"]["Man or woman?"]
    assert line["probed"] == 6 and line["probed_share"] == 1.0 and line["kept"] > 0
    assert (
        "right in the probe" in (corpus / "rows/report.html").read_text()
        and "100.0\u202f% of 6" in (corpus / "rows/report.html").read_text()
    )


def test_weights_change_the_recipe_and_scores_do_not() -> None:
    def named(**more: Any) -> str | None:
        return fingerprint(prompt_set([{**PROMPTS[0], **more}]))

    assert named() == named(weight=1) == named(probed=[3, 4]) != named(weight=0.5)


@pytest.mark.parametrize("wrong", [{"weight": 0}, {"weight": True}, {"probed": [5, 4]}, {"probed": "5/4"}])
def test_a_wrong_weight_or_score_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_prompts([{**PROMPTS[0], **wrong}])


def test_a_lucky_prompt_of_a_group_that_fails_is_left_out(tmp_path: Path) -> None:
    prompts = parse_prompts([{**PROMPTS[0], "prompt_id": str(n), "prompt": f"{n}?"} for n in range(3)])
    lucky = [(prompts[0], Score(9, 12)), (prompts[1], Score(4, 12)), (prompts[2], Score(2, 12))]
    assert Probed(tmp_path, lucky).chosen(0.7) == []
    better = [(prompts[0], Score(12, 12)), *lucky[1:]]
    assert Probed(tmp_path, better).chosen(0.7) == better[:1]
    good = [(prompts[0], Score(9, 12)), (prompts[1], Score(8, 12)), (prompts[2], Score(7, 12))]
    assert Probed(tmp_path, good).chosen(0.7) == good[:1]


def test_a_probe_without_a_right_answer_says_so(corpus: Path) -> None:
    with pytest.raises(ConfigError, match="no prompt reaches min_right=0.7"):
        run_command(settings(corpus, prompts=PROMPTS[1:3]))
    assert not (corpus / "pool.yaml").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"output": "pool.txt"}, "output must be a .yaml file"),
        ({"prompts": "proposed"}, "probe needs a set of prompts"),
        ({"answers": 3}, "answers"),
    ],
)
def test_wrong_settings_are_refused(corpus: Path, more: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_command(settings(corpus, **more))


def test_intervals_are_wilsons() -> None:
    assert Score(8, 10).interval == pytest.approx((0.4902, 0.9433), abs=1e-3)
    assert Score(0, 6).interval[0] == pytest.approx(0, abs=1e-9)
