"""A recipe from its config to its rows: the shipped files, the thin main, real engines, and what is refused."""

import dataclasses
import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import AutoTokenizer

from nemo_desta.data.row_schema import KNOWN_KEYS
from nemo_desta.errors import ConfigError
from nemo_desta.recipes.commands import run_command
from nemo_desta.recipes.engines import engine_identity
from nemo_desta.recipes.pipeline import RecipeFolder, RecipeMismatch, Summary
from nemo_desta.recipes.run import my_shards, run_recipe
from nemo_desta.recipes.settings import RecipeConfig, identity, parse_recipe
from nemo_desta.testing.openai_server import Faults, Reply, ScriptedServer

REPO = Path(__file__).parents[2]
CONF = REPO / "conf/recipes"
PROMPTS = [
    {"prompt_id": "who", "prompt": "Who?", "requires": ["gender"]},
    {"prompt_id": "said", "prompt": "What is said?", "requires": ["transcript"]},
]


def shipped(name: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base=None):
        return OmegaConf.to_container(compose(name, overrides=list(overrides)))


def given(root: Path, llm_path: Path, **more: Any) -> dict[str, Any]:
    base = {"corpus": "m.jsonl", "data_root": str(root), "llm": str(llm_path), "prompts": PROMPTS}
    base |= {"output": str(root / "out"), "engine": {"name": "hf", "batch_size": 4}, "progress": False}
    base |= {"request": {"sampling": {"max_new_tokens": 8, "temperature": 1.0}}, "report": False, "seed": 3}
    return {**base, **more}


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for path in sorted((folder / "rows").iterdir()) for line in path.open(encoding="utf-8")]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


@pytest.mark.parametrize(
    "name", ["self_generate", "self_rephrase", "demo_rephrase", "laptop", "alarm", "spoken_questions"]
)
def test_a_shipped_config_has_every_knob_and_only_known_ones(name: str) -> None:
    config = shipped(name)
    assert config.pop("recipe") == "generate"
    assert set(config) == {item.name for item in dataclasses.fields(RecipeConfig)}
    if name != "demo_rephrase":
        config |= {"corpus": "fsdd", "data_root": "x", "llm": "x", "output": "x"}
    parsed = parse_recipe(config)
    if name == "demo_rephrase":
        assert parsed.rephrase.instructions["neutral_tags"] and parsed.engine["batch_size"] == 128
    elif name == "self_generate":
        defaults = RecipeConfig(**{key: config[key] for key in ("corpus", "data_root", "llm", "output")})
        assert dataclasses.replace(parsed, engine={"name": "hf"}) == defaults
    elif name == "laptop":
        assert parsed.prompts == "plain" and parsed.engine["dtype"] == "fastest" and parsed.gates.facts is not None
        assert parsed.request.sampling.max_new_tokens == 48 and parsed.gates.grounded is not None
    elif name == "spoken_questions":
        assert (parsed.prompts, parsed.prompts_per_clip, parsed.max_wer) == ("spoken", 2, 0.5)
        assert parsed.gates.leak is None and parsed.request.template == "{prompt}\n{description}"
    else:
        if name == "alarm":
            assert parsed.prompts == "proposed" and parsed.proposals.judge and parsed.judge.enabled
            assert parsed.audio.max_secs == 60 and parsed.gates.target_tokens == [100, 612] and parsed.gates.leak
        assert parsed.rephrase.enabled and parsed.request.sampling.temperature is None and parsed.request.system


@pytest.mark.parametrize("group", ["engine", "runner"])
def test_groups_compose(group: str) -> None:
    for path in (CONF / group).glob("*.yaml"):
        assert shipped("self_generate", f"{group}={path.stem}")[group]["name"] == path.stem.removesuffix("_fastest")


def test_arguments_of_vllm_are_given_as_documented() -> None:
    config = shipped(
        "self_generate", "engine=vllm", "engine.max_model_len=2048", "engine.engine_args={max_num_seqs: 8}"
    )
    assert engine_identity(config["engine"], "x") == {
        "name": "vllm",
        "dtype": None,
        "engine_args": {"max_num_seqs": 8},
    }
    assert engine_identity(shipped("self_generate", "engine=vllm")["engine"], "x")["engine_args"] == {}


def test_main_writes_rows_from_a_config(corpus: Path, llm_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {**shipped("self_generate"), **given(corpus, llm_folder, describe={"dialect": "alarm"}, gates={})}
    print(run_command(OmegaConf.create(config)))
    rows = rows_of(corpus / "out")
    assert f"rows written: {len(rows)}" in capsys.readouterr().out and len(rows) > 5
    assert set().union(*rows.values()) <= KNOWN_KEYS  # an unknown key is a warning in every training
    assert {row["llm"] for row in rows.values()} == {"tiny-qwen3"} and all(r["llm_revision"] for r in rows.values())
    assert all("(duration: 1s, gender: " in row["seed_description"] for row in rows.values())
    config |= {"engine": {"name": "hff"}, "output": str(corpus / "other")}
    with pytest.raises(ConfigError, match="unknown engine 'hff'. Did you mean 'hf'"):
        run_command(OmegaConf.create(config))


def test_bad_audio_is_counted_and_named(corpus: Path, llm_folder: Path) -> None:
    summary = run_recipe(given(corpus, llm_folder, prompts_per_clip=2))
    assert summary.rejected["missing audio"] == 2 and summary.rejected["corrupt audio"] == 2
    assert "c3" in summary.examples["missing audio"][0] and "c7" in summary.examples["corrupt audio"][0]
    assert summary.written + summary.num_rejected == 24
    rejected = [json.loads(line) for path in (corpus / "out/rejected").iterdir() for line in path.open()]
    assert len(rejected) == summary.num_rejected and {"c3-p0", "c3-p1"} <= {r["id"] for r in rejected}


def test_rows_do_not_depend_on_batches_or_shards(corpus: Path, llm_folder: Path) -> None:
    run_recipe(given(corpus, llm_folder))
    other = given(corpus, llm_folder, output=str(corpus / "b"), engine={"name": "hf", "batch_size": 1})
    run_recipe({**other, "shard_size": 5})
    assert rows_of(corpus / "b") == rows_of(corpus / "out")
    seeds = {row["seed"] for row in rows_of(corpus / "out").values()}
    assert len(seeds) == len(rows_of(corpus / "out"))


def test_the_same_folder_with_other_settings_is_refused(corpus: Path, llm_folder: Path) -> None:
    run_recipe(given(corpus, llm_folder))
    assert isinstance(run_recipe(given(corpus, llm_folder, engine={"name": "hf", "batch_size": 2})), Summary)
    with pytest.raises(RecipeMismatch, match="seed .there: 3, now: 4."):
        run_recipe(given(corpus, llm_folder, seed=4))
    changed = [{**PROMPTS[0], "prompt": "Who is it?"}, PROMPTS[1]]
    with pytest.raises(RecipeMismatch, match="prompts"):
        run_recipe(given(corpus, llm_folder, prompts=changed))


def test_check_counts_with_a_tokenizer_alone_and_writes_nothing(corpus: Path, llm_folder: Path) -> None:
    tokenizer = shutil.copytree(llm_folder, corpus / "llm", ignore=shutil.ignore_patterns("*.safetensors"))
    result = run_recipe(given(corpus, tokenizer, prompts_per_clip=2, check=True))
    assert (result.units, result.to_make) == (12, 20) and not (corpus / "out").exists()
    assert result.unusable == {"missing audio": 2, "corrupt audio": 2} and "c3-p0" in str(result)


def test_a_run_says_which_clips_it_leaves_out_and_which_became_the_validation_split(
    corpus: Path, llm_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (corpus / "m.jsonl").read_text().replace('"id": "c0", "source": "toy", "split": "train"', '"id": "c0"')
    lines = lines.replace('"id": "c1", "source": "toy", "split": "train"', '"id": "c1", "split": "test"')
    (corpus / "m.jsonl").write_text(lines)
    said = str(run_recipe(given(corpus, llm_folder, check=True, validation={"share": 0.2})))
    assert "m has no validation split: 2 of 11 training clips (18%)" in said and "left out: test 1 clip" in said
    run_recipe(given(corpus, llm_folder, validation={"share": 0.2}))
    assert "left out: test 1 clip" in capsys.readouterr().out
    assert {row["split"] for row in rows_of(corpus / "out").values()} == {"train", "valid"}
    with pytest.raises(ConfigError, match=r"validation\.share must be from 0 to below 1, found 1"):
        run_recipe(given(corpus, llm_folder, validation={"share": 1}))


def test_an_array_of_jobs_shares_the_shards(corpus: Path, llm_folder: Path) -> None:
    run_recipe(given(corpus, llm_folder))
    parts = given(corpus, llm_folder, output=str(corpus / "array"), shard_size=3)
    assert run_recipe({**parts, "shard": "0/2"}).missing_shards == 2
    assert run_recipe({**parts, "shard": "1/2"}).missing_shards == 0
    assert rows_of(corpus / "array") == rows_of(corpus / "out")
    assert my_shards("1/3", 8) == [1, 4, 7] and my_shards(None, 2) == [0, 1]
    for wrong in ("3/3", "a/2", "1", "1/0"):
        with pytest.raises(ConfigError, match="shard must be i/n"):
            my_shards(wrong, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"llm": "???", "output": "???", "request": {"sampling": {"seed": "???"}}}, "llm, output, request.sampling.s"),
        ({"promts_per_clip": 2}, "Did you mean 'prompts_per_clip'"),
        ({"prompts_per_clip": "many"}, "'recipe.prompts_per_clip' must be a whole number"),
        ({"gates": {"lenght": None}}, "Did you mean 'length'"),
        ({"engine": {"name": "hf", "batchsize": 1}}, "Did you mean 'batch_size'"),
        ({"judge": {"engine": {"name": "hff"}}}, "unknown engine 'hff'. Did you mean 'hf'"),
        ({"corpus": None}, "either corpus .* or rows"),
        ({"data_root": None}, "data_root must be given"),
        ({"corpus": None, "rows": "rows"}, "self_rephrase"),
        ({"prompts": "proposed", "prompts_per_clip": 2}, "one per clip"),
        ({"request": {"template": "{prompt}"}}, "must hold"),
        ({"audio": {"check": "ears"}}, "header, decode or off"),
    ],
)
def test_wrong_settings_are_named(corpus: Path, llm_folder: Path, change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_recipe(given(corpus, llm_folder, **change))


def test_missing_files_are_named_before_the_llm_is_loaded(corpus: Path) -> None:
    for change, message in (
        ({"corpus": "n.jsonl"}, "n.jsonl does not exist"),
        ({"data_root": str(corpus / "nowhere")}, "nowhere"),
        ({"prompts": "p.jsonl"}, "p.jsonl"),
    ):
        with pytest.raises((FileNotFoundError, ConfigError), match=message):
            run_recipe(given(corpus, Path("no/such-llm"), **change))


def answers(prompt: str) -> str | Reply:
    """A server's LLM: leaks once in three clips, at first."""
    if "word 4 " in prompt:
        return Reply(status=400, message="prompt too long")
    return "According to the description, it is a man." if "word 2 " in prompt else "It is a calm voice, I hear."


def test_rows_over_http_with_faults_and_a_leak(corpus: Path, llm_folder: Path) -> None:
    faults = Faults(http_500=0.1, dropped=0.05, malformed=0.05)
    with ScriptedServer(answers, faults=faults) as server:
        engine = {"name": "openai", "base_url": server.url, "model": server.model, "first_wait_secs": 0.001}
        summary = run_recipe(given(corpus, llm_folder, engine=engine, prompts_per_clip=2))
        again = len(server.calls)
        assert run_recipe(given(corpus, llm_folder, engine=engine, prompts_per_clip=2)) == summary
        assert len(server.calls) == again, "a finished recipe asks nothing"
    assert summary.rejected == {"missing audio": 2, "corrupt audio": 2, "LLM error": 2, "leak": 2}
    rows = rows_of(corpus / "out")
    assert len(rows) == 16 and {row["response"] for row in rows.values()} == {"It is a calm voice, I hear."}
    assert {row["llm"] for row in rows.values()} == {"scripted"}


def one_llm_in_four_roles(prompt: str) -> str:
    """A server's LLM: writes prompts, judges prompts, answers, and judges answers; good and bad ones mixed."""
    if "<prompts>" in prompt:
        return (
            "<prompts>\n1. Is it a man or a woman?\n2. What does the caption say?\n3. Who paid for this?\n</prompts>"
        )
    if "The prompt:\n" in prompt:
        return "It cannot be known.\nNO" if "paid" in prompt else "YES"
    if "=== Reply ===" in prompt:
        return "It knows too much.\nYES" if "written down somewhere" in prompt else "NO"
    return "A man, as somebody has written down somewhere." if "word 5 " in prompt else "A man, by the deep voice."


def test_an_llm_proposes_prompts_and_judges_leaks_over_http(corpus: Path, llm_folder: Path) -> None:
    manifest = corpus / "m.jsonl"
    manifest.write_text(manifest.read_text().replace('"duration": 0.3, ', ""))  # the files' headers state it
    asked: list[str] = []
    with ScriptedServer(lambda prompt: asked.append(prompt) or one_llm_in_four_roles(prompt)) as server:
        engine = {"name": "openai", "base_url": server.url, "model": server.model, "api": "chat"}
        settings = given(corpus, llm_folder, engine=engine, prompts="proposed", judge={"enabled": True})
        summary = run_recipe(settings)
    assert min(prompt.count("Gender: ") for prompt in asked if "<prompts>" in prompt) > 1  # other clips are examples
    assert summary.rejected == {"missing audio": 1, "corrupt audio": 1, "leak (judge)": 1}
    assert "c5-p0" in summary.examples["leak (judge)"][0]
    rows = rows_of(corpus / "out")
    assert len(rows) == 9 and {row["prompt"] for row in rows.values()} == {"Is it a man or a woman?"}
    assert {row["response"] for row in rows.values()} == {"A man, by the deep voice."}


def test_two_corpora_with_roots_of_their_own_and_measured_attributes(
    corpus: Path, llm_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(corpus / "audio", other / "audio")
    rows = [json.loads(line) for line in (corpus / "m.jsonl").read_text().splitlines()]
    for i, path in enumerate(sorted((other / "audio").iterdir())):
        if path.name != "c7.flac":
            samples, rate = soundfile.read(path)
            soundfile.write(path, samples * 10 ** (-i / 10), rate)
    lines = [json.dumps({**row, "id": f"o{row['id']}", "source": "quiet"}) + "\n" for row in rows]
    (other / "n.jsonl").write_text("".join(lines))
    both = {"corpus": ["m.jsonl", "n.jsonl"], "data_root": {"m": str(corpus), "n": str(other)}}
    summary = run_recipe(given(corpus, llm_folder, **both, describe={"measure": ["volume"]}))
    made = rows_of(corpus / "out")
    assert {row["corpus"] for row in made.values()} == {"m", "n"} and summary.about["corpora"] == {"m": "1", "n": "1"}
    heard = {row["id"]: row["seed_description"] for row in made.values() if row["corpus"] == "n"}
    assert any("Volume: quiet" in text for text in heard.values()) and any("Volume: loud" in t for t in heard.values())
    with pytest.raises(ConfigError, match="clip id 'c0' of n is in another corpus"):
        (other / "n.jsonl").write_text(json.dumps(rows[0]) + "\n")
        run_recipe(given(corpus, llm_folder, **both, output=str(corpus / "clash")))
    with pytest.raises(ConfigError, match="no folder for corpus 'n.jsonl'"):
        run_recipe(given(corpus, llm_folder, **{**both, "data_root": {"m": str(corpus)}}))


def test_facts_are_checked_against_what_the_corpus_holds(corpus: Path, llm_folder: Path) -> None:
    who = [PROMPTS[0]]
    with ScriptedServer(lambda prompt: "It is a male voice.") as server:
        engine = {"name": "openai", "base_url": server.url, "model": server.model, "tokenizer": str(llm_folder)}
        settings = given(corpus, llm_folder, engine=engine, prompts=who, gates={"facts": {}}, max_attempts=1)
        summary = run_recipe(settings)
    wrong = [f"c{i}" for i in range(12) if i % 2 and i not in (3, 7)]
    assert summary.rejected["contradicts attributes"] == len(wrong)
    assert {row["id"][:-3] for row in rows_of(corpus / "out").values()} == {"c0", "c2", "c4", "c6", "c8", "c10"}


def odd(prompt: str) -> Reply:
    """A server's LLM whose usage cannot be read, and that answers two clips with nonsense."""
    if "word 2 " in prompt:
        return Reply(body=b"[" * 200_000)
    if "word 4 " in prompt:
        return Reply(body=b'{"choices": [{"text": null, "finish_reason": "stop"}], "usage": {}}')
    usage = {"word 0 ": [1], "word 1 ": "many", "word 5 ": {"prompt_tokens": "5", "completion_tokens": None}}
    found = next((value for text, value in usage.items() if text in prompt), {"completion_tokens": float("nan")})
    choice = {"text": "It is a calm voice, I hear.", "finish_reason": "stop"}
    return Reply(body=json.dumps({"choices": [choice], "usage": found}).encode())


def over_http(corpus: Path, llm_folder: Path, server: ScriptedServer, **more: Any) -> dict[str, Any]:
    engine = {"name": "openai", "base_url": server.url, "model": server.model, "first_wait_secs": 0.001}
    return given(corpus, llm_folder, engine=engine, **more)


def test_odd_answers_of_a_server_cost_their_own_rows_and_end_no_recipe(corpus: Path, llm_folder: Path) -> None:
    with ScriptedServer(odd) as server:
        summary = run_recipe(over_http(corpus, llm_folder, server))
    assert summary.rejected == {"missing audio": 1, "corrupt audio": 1, "LLM error": 2}
    assert (summary.written, summary.prompt_tokens, summary.new_tokens) == (8, 0, 0)
    assert set(rows_of(corpus / "out")) == {f"c{i}-p0" for i in (0, 1, 5, 6, 8, 9, 10, 11)}


def test_a_folder_whose_shards_hold_null_as_tokens_finishes(corpus: Path, llm_folder: Path) -> None:
    with ScriptedServer(lambda prompt: "It is a calm voice, I hear.") as server:
        settings = over_http(corpus, llm_folder, server, shard_size=6)
        assert run_recipe({**settings, "shard": "0/2"}).missing_shards == 1
        path = corpus / "out/shards/00000.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({**line, "tokens": [None, None]}) + "\n" for line in lines))
        summary = run_recipe(settings)
    assert summary.written == 10 and 0 < summary.new_tokens < 80


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": "other"}, r'engine\.model .there: "scripted", now: "other"'),
        ({"extra_body": {"temperature": 1.5}}, r"engine\.extra_body\.temperature .there: null, now: 1\.5"),
        ({"api": "chat"}, r'engine\.api .there: "completions", now: "chat"'),
    ],
)
def test_a_resumed_recipe_is_refused_another_llm_at_the_server(
    corpus: Path, llm_folder: Path, change: dict[str, Any], named: str
) -> None:
    with ScriptedServer(lambda prompt: "It is a calm voice, I hear.") as server:
        settings = over_http(corpus, llm_folder, server, shard_size=6)
        assert run_recipe({**settings, "shard": "0/2"}).missing_shards == 1
        with pytest.raises(RecipeMismatch, match=named):
            run_recipe({**settings, "engine": {**settings["engine"], **change}})
    with ScriptedServer(lambda prompt: "It is a calm voice, I hear.") as server:  # another address
        engine = {**settings["engine"], "base_url": server.url, "concurrency": 3, "timeout_secs": 50.0}
        assert run_recipe({**settings, "engine": engine}).written == 10
        with pytest.raises(RecipeMismatch, match=named):  # a finished folder, too
            run_recipe({**settings, "engine": {**engine, **change}})


def test_a_folder_of_an_earlier_version_resumes(corpus: Path, llm_folder: Path) -> None:
    with ScriptedServer(lambda prompt: "It is a calm voice, I hear.") as server:
        settings = over_http(corpus, llm_folder, server, shard_size=6)
        run_recipe({**settings, "shard": "0/2"})
        recipe = json.loads((corpus / "out/recipe.json").read_text())
        assert recipe.pop("engine")["model"] == "scripted" and recipe.pop("chat_template")
        (corpus / "out/recipe.json").write_text(json.dumps(recipe))
        assert run_recipe(settings).written == 10


def test_a_resumed_recipe_is_refused_another_chat_template(corpus: Path, llm_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    shutil.copytree(llm_folder, other)
    with ScriptedServer(lambda prompt: "It is a calm voice, I hear.") as server:
        settings = over_http(corpus, llm_folder, server, shard_size=4, tokenizer=str(llm_folder))
        assert run_recipe({**settings, "shard": "0/3"}).missing_shards == 2
        assert run_recipe({**settings, "shard": "1/3", "tokenizer": str(other)}).missing_shards == 1
        file = next(path for path in (other / "chat_template.jinja", other / "tokenizer_config.json") if path.exists())
        file.write_text(file.read_text().replace("assistant", "model"))
        with pytest.raises(RecipeMismatch, match="holds rows with chat_template"):
            run_recipe({**settings, "tokenizer": str(other)})


def test_a_template_with_a_date_keeps_that_of_the_recipes_beginning(corpus: Path, llm_folder: Path) -> None:
    from nemo_desta.recipes.build import build_engines, freeze_dates
    from nemo_desta.recipes.pipeline import RecipeFolder

    dated = shutil.copytree(llm_folder, corpus / "dated")
    tokenizer = AutoTokenizer.from_pretrained(dated)
    tokenizer.chat_template = "Today: {{ strftime_now('%d %b %Y') }}\n" + tokenizer.chat_template
    tokenizer.save_pretrained(dated)
    config = given(corpus, dated)
    run_recipe(config)
    recipe = json.loads((corpus / "out/recipe.json").read_text())
    assert datetime.fromisoformat(recipe["template_date"]).date() == datetime.now().date()
    recipe["template_date"] = "2020-02-01T23:59:00"
    (corpus / "out/recipe.json").write_text(json.dumps(recipe))
    engines = build_engines(parse_recipe(config))
    freeze_dates(RecipeFolder(corpus / "out"), engines)
    assert engines[0].prompts.render([{"role": "user", "content": "Hi."}]).startswith("Today: 01 Feb 2020\n")
    assert run_recipe(config), "the same recipe is resumed"
    assert "template_date" not in _recipe_of(corpus, llm_folder)


def _recipe_of(corpus: Path, llm_folder: Path) -> dict[str, Any]:
    """recipe.json of a recipe whose template reads no clock."""
    run_recipe(given(corpus, llm_folder, output=str(corpus / "other")))
    return json.loads((corpus / "other/recipe.json").read_text())


def test_rows_hold_the_system_message_and_the_number_format(corpus: Path, llm_folder: Path) -> None:
    request = {"sampling": {"max_new_tokens": 4, "temperature": 1.0}, "system": "Be brief."}
    off = {"gates": {"grounded": None, "language": None, "not_text": False}, "max_attempts": 1}
    run_recipe(given(corpus, llm_folder, request=request, **off))
    for row in rows_of(corpus / "out").values():
        assert row["messages"][0] == {"role": "system", "content": "Be brief."} and row["llm_dtype"] == "float32"
    recipe = json.loads((corpus / "out/recipe.json").read_text())
    assert recipe["llm_dtype"] == "float32" and recipe["request"]["keep_system"]
    request |= {"keep_system": False}
    run_recipe(given(corpus, llm_folder, request=request, output=str(corpus / "bare"), **off))
    assert all(row["messages"][0]["role"] == "user" for row in rows_of(corpus / "bare").values())


def test_the_number_format_counts_and_not_its_word(corpus: Path, llm_folder: Path, monkeypatch) -> None:
    from nemo_desta.ops import dtypes

    def run(dtype: str) -> Any:
        off = {"gates": {"grounded": None, "language": None, "not_text": False}, "max_attempts": 1}
        sampling = {"max_new_tokens": 4, "temperature": 1.0}
        engine = {"name": "hf", "device": "cpu", "dtype": dtype}
        return run_recipe(given(corpus, llm_folder, request={"sampling": sampling}, engine=engine, **off))

    monkeypatch.setattr(dtypes, "_fastest", lambda: torch.bfloat16)
    run("fastest")
    assert {row["llm_dtype"] for row in rows_of(corpus / "out").values()} == {"bfloat16"}
    recipe = json.loads((corpus / "out/recipe.json").read_text())
    assert recipe["llm_dtype"] == "bfloat16" and recipe["engine"]["dtype"] == "auto"
    run("auto")  # the same recipe; its LLM is not loaded, since the folder is finished


def test_the_identity_of_older_folders_stays(corpus: Path) -> None:
    def request(**system: Any) -> dict[str, Any]:
        return identity(parse_recipe(given(corpus, Path("x"), request=system)))["request"]

    assert "keep_system" not in request() and request(system="")["keep_system"]
    assert "keep_system" not in request(system="x", keep_system=False)
    assert request()["max_new_tokens_by_kind"]["one_word"] == 64
    assert "max_new_tokens_by_kind" not in request(max_new_tokens_by_kind=None)
    with pytest.raises(ConfigError, match="max_new_tokens_by_kind.ask must be at least 1"):
        request(max_new_tokens_by_kind={"ask": 0})


def test_an_empty_system_message_that_a_template_fills_is_refused(corpus: Path, llm_folder: Path) -> None:
    from nemo_desta.recipes.build import build_engines, build_input, build_prompts, build_stage

    config = parse_recipe(given(corpus, llm_folder, request={"system": ""}))
    engines = build_engines(config)
    parts = (*build_input(config), build_prompts(config), engines)
    assert build_stage(config, *parts).system == ""
    said = "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}"
    said += "{% set messages = messages[1:] %}{% endif %}"
    engines[0].prompts.tokenizer.chat_template = (
        said + "<s>{{ s or 'Be of help.' }}</s>{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    for name in ("default_system", "keeps_default_system"):
        del vars(engines[0].prompts)[name]
    with pytest.raises(ConfigError, match="request.system=\"\" cannot leave out .* 'Be of help.'"):
        build_stage(config, *parts)


def test_a_folder_from_before_the_new_gates_resumes_without_them(corpus: Path) -> None:
    old = identity(parse_recipe(given(corpus, Path("x"))))
    del old["gates"]["grounded"], old["gates"]["refusals"]["talk"]
    RecipeFolder(corpus / "out").claim(old)
    with pytest.raises(RecipeMismatch, match=r"gates.grounded \(there: null.*gates.refusals.talk \(there: null"):
        RecipeFolder(corpus / "out").claim(identity(parse_recipe(given(corpus, Path("x")))))
    without = {"grounded": None, "refusals": {"talk": None}}
    RecipeFolder(corpus / "out").claim(identity(parse_recipe(given(corpus, Path("x"), gates=without))))
    folder = RecipeFolder(corpus / "out")
    folder.remember("llm_dtype", "bfloat16")  # not known in older folders: recorded when the run resumes
    with pytest.raises(RecipeMismatch, match="llm_dtype 'bfloat16', now it is 'float32'"):
        folder.remember("llm_dtype", "float32")
