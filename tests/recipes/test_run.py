"""The recipe from its config: the shipped file, the thin main, and what a wrong config says."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nemo_desta.config import ConfigError
from nemo_desta.recipes.run import SelfGenerateConfig, run_self_generate

REPO = Path(__file__).parents[2]
CONF = REPO / "conf/recipes/self_generate.yaml"


def test_shipped_config_has_every_knob_with_its_default() -> None:
    shipped = OmegaConf.to_container(OmegaConf.load(CONF))
    config = SelfGenerateConfig()
    defaults = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    assert {**defaults, "manifests": "???"} == shipped


def test_main_writes_rows_from_a_config(corpus: Path, llm_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("generate", REPO / "examples/desta_generate_data.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    prompts = [{"prompt_id": "who", "prompt": "Who?", "requires": ["gender"]}]
    given = {"data_root": str(corpus), "manifests": ["m.jsonl"], "llm": str(llm_folder), "prompts": prompts}
    given |= {"output": str(corpus / "rows.jsonl"), "max_new_tokens": 8, "batch_size": 4, "dialect": "alarm"}
    example.main(OmegaConf.merge(OmegaConf.load(CONF), given))
    rows = [json.loads(line) for line in (corpus / "rows.jsonl").read_text().splitlines()]
    assert f"rows written: {len(rows)}" in capsys.readouterr().out and len(rows) > 5
    assert {row["llm"] for row in rows} == {"tiny-qwen3"}
    assert all("(duration: 1s, gender: " in row["seed_description"] for row in rows)


def test_missing_files_are_listed_together_before_the_llm_is_loaded(corpus: Path) -> None:
    given = {"data_root": str(corpus), "manifests": ["m.jsonl", "n.jsonl"], "prompts": "p.jsonl"}
    with pytest.raises(FileNotFoundError) as error:
        run_self_generate({**given, "llm": "no/such-llm", "output": "rows.jsonl"})
    assert "no file n.jsonl" in str(error.value) and "no file p.jsonl" in str(error.value)
    assert "m.jsonl" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "data_root, manifests, llm, output"),
        ({"promts_per_clip": 2}, "Did you mean 'prompts_per_clip'"),
        ({"batch_size": "many"}, "'self_generate.batch_size' must be int"),
    ],
)
def test_wrong_settings_are_named(given: dict, message: str) -> None:
    cfg = OmegaConf.load(CONF)
    if given:
        cfg = OmegaConf.merge(cfg, {"data_root": "r", "manifests": ["m"], "llm": "l", "output": "o"}, given)
    with pytest.raises(ConfigError, match=message):
        run_self_generate(cfg)


def test_no_rows_of_the_wanted_splits_is_an_error(corpus: Path) -> None:
    given = {"data_root": str(corpus), "manifests": ["m.jsonl"], "llm": "x", "output": "o", "splits": ["tset"]}
    with pytest.raises(ValueError, match=r"no rows of splits \['tset'\] in m.jsonl"):
        run_self_generate(given)
