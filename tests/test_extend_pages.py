"""The files of docs/extend/ are used as their pages say, from a folder of their own."""

import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import HubertConfig, HubertModel

from nemo_desta.config import ModelConfig, parse
from nemo_desta.core.trust import UntrustedConfig
from nemo_desta.models.desta import DestaModel
from nemo_desta.perception.build import build_encoders, token_counter
from nemo_desta.sharing.export import export_model
from nemo_desta.testing import data
from nemo_desta.testing.hf_encoders import tiny_hf_encoder
from tests.training.conftest import Workplace

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "extend"


def blocks(page: str, language: str) -> list[str]:
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(request, tmp_path, monkeypatch):
    """The current folder, with the page's file and config in it."""
    page = request.param
    (code,) = blocks(page, "python")
    assert len(code.splitlines()) < 60, "a page's file is short"
    name = f"my_{page}"
    assert code.startswith(f"# {name}.py\n")
    (tmp_path / f"{name}.py").write_text(code)
    for config in blocks(page, "yaml"):
        (tmp_path / "mine.yaml").write_text(config)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop(name, None)


def of_page(page):
    return pytest.mark.parametrize("folder", [page], indirect=True)


def composed(folder: Path, conf: str, *overrides: str):
    """What ``--config-dir . --config-name mine`` makes of the page's config."""
    with initialize_config_dir(str(folder), version_base=None):
        return compose("mine", [f"hydra.searchpath=[file://{ROOT / conf}]", *overrides])


def trained_and_reopened(folder: Path, target: str, *leave_out: str, **more: object) -> DestaModel:
    """Train two steps, reopen the model folder with its grant, and compare the audio embeddings."""
    from nemo_desta.training.fit import fit

    workplace = Workplace(folder / "work")
    settings = {"trainer.max_steps": 2, "callbacks.sample_rows": 0, **more}
    overrides = [
        override for override in workplace.overrides("runs", **settings) if not override.startswith(leave_out)
    ]
    model = fit(composed(folder, "conf", *overrides))
    saved = folder / "work" / "runs" / "mine" / "model"
    with pytest.raises(UntrustedConfig, match=rf"allow_targets=\['{target}'\]"):
        DestaModel.from_pretrained(saved, device="cpu")
    opened = DestaModel.from_pretrained(saved, device="cpu", allow_targets=[target])
    audio, lens = torch.randn(2, 24_000), torch.tensor([24_000, 9_001])
    (vectors, counts), (again, _) = (one.perception.eval()(audio, lens) for one in (model, opened))
    assert counts.tolist() == [opened.num_audio_tokens(24_000), opened.num_audio_tokens(9_001)]
    alone, (count,) = opened.perception(audio[1:, :9_001], lens[1:])
    torch.testing.assert_close(vectors, again)
    torch.testing.assert_close(again[1, :count], alone[0, :count], rtol=1e-4, atol=1e-5)  # padding does not matter
    export_model(saved, folder / "exported", allow_targets=[target])
    card = (folder / "exported" / "README.md").read_text()
    assert f'allow_targets=["{target}"]' in card and f"get `{target.partition('.')[0]}` from its authors" in card
    return opened


@of_page("encoder")
def test_the_encoder_of_the_page_trains_and_is_reopened(folder):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    convolutions = {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    HubertModel(HubertConfig(**sizes, **convolutions)).save_pretrained(folder / "hubert")
    opened = trained_and_reopened(
        folder,
        "my_encoder.HubertEncoder",
        "model.perception.encoders.whisper",
        "model.perception.encoders.beats",
        **{
            "model.perception.encoders.hubert.path": folder / "hubert",
            "model.perception.encoders.hubert.layer_ids": "[1,2]",
        },
    )
    assert list(opened.perception.encoders) == ["hubert"]
    config = opened.config.perception
    assert token_counter(config, 32)(9_001) == opened.num_audio_tokens(9_001)


def test_the_command_with_an_encoder_of_transformers(tmp_path):
    command = shlex.split(blocks("encoder", "bash")[0].replace("\\\n", ""))
    assert command[:2] == ["desta", "train"]
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        settings = OmegaConf.to_container(compose("desta25", command[2:]).model, resolve=True)
    perception = parse(ModelConfig, settings).perception
    (name, encoder), *others = perception.encoders.items()
    assert not others
    encoder |= {"path": tiny_hf_encoder(tmp_path, "hubert"), "layer_ids": [1, 3]}
    (found,) = build_encoders(replace(perception, encoders={name: encoder})).values()
    layers, lens = found(torch.randn(1, 16_000), torch.tensor([16_000]))
    assert found.num_frames(16_000) == int(lens[0]) == layers[0].shape[1] == 49


@of_page("projector")
def test_the_projector_of_the_page_trains_and_is_reopened(folder):
    opened = trained_and_reopened(
        folder, "my_projector.StackProjector", **{"+model.perception.projector.hidden_size": 16}
    )
    assert type(opened.perception.projector).__name__ == "StackProjector"
    assert list(opened.perception.encoders) == ["whisper"]
    assert opened.num_audio_tokens(16_000) == 7  # 50 frames by 8


def write_tone(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data.write_tone(path, 0.3)


def clips(folder: Path, count: int = 4) -> Path:
    """A corpus of tones with a transcript, as a manifest."""
    rows = []
    for i in range(count):
        write_tone(folder / "corpus" / f"{i}.wav")
        row = {"id": f"c{i}", "audio": f"{i}.wav", "duration": 0.3, "domain": "speech", "split": "train"}
        rows.append({**row, "source": "toy", "transcript": f"this is word number {i} of the list today"})
    path = folder / "corpus" / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def generated(folder: Path, **more: object):
    """The recipe of the page's config over `clips`; rows and rejections by clip."""
    from nemo_desta.recipes.run import run_recipe

    prompts = [{"prompt_id": "said", "prompt": "What is said?", "requires": ["transcript"]}]
    config = OmegaConf.to_container(composed(folder, "conf/recipes"))
    config.pop("recipe")
    config |= {"corpus": str(clips(folder)), "prompts": prompts, "report": False, "progress": False, **more}
    run_recipe(config)
    found = []
    for part in ("rows", "rejected"):
        lines = [line for path in sorted((folder / "rows" / part).glob("*.jsonl")) for line in path.open()]
        found.append({row["id"].split("-")[0]: row for row in map(json.loads, lines)})
    return found


@of_page("gate")
def test_the_gate_of_the_page_drops_rows_of_a_recipe(folder):
    from nemo_desta.testing.openai_server import ScriptedServer

    def answer(prompt: str) -> str:
        number = re.search(r"number (\d)", prompt)[1]
        said = f"this is word number {number} of the list today"
        texts = {"0": "The entry is one word long. I hope this helps!", "1": f"I hear this: {said}."}
        return texts.get(number, f"Somebody reads the entry {number} of a longer list aloud.")

    with ScriptedServer(answer, model="served") as server:
        engine = {"name": "openai", "base_url": server.url, "api": "chat", "model": "served"}
        rows, rejected = generated(folder, engine=engine, max_attempts=2)
        calls = len(server.calls)
    assert sorted(rows) == ["c2", "c3"]
    assert {name: row["reason"] for name, row in rejected.items()} == {
        "c0": "unwanted phrase",
        "c1": "copied transcript",
    }
    assert calls == 5, "only the first reason is worth a second answer"


@of_page("engine")
def test_the_engine_of_the_page_answers_a_recipe(folder):
    (folder / "llm.py").write_text(
        "import json, sys\n"
        "asked = json.load(sys.stdin)\n"
        "number = asked['messages'][-1]['content'].split('number ')[1][0]\n"
        "if number == '3':\n"
        "    sys.exit('no answer to this one')\n"
        "text = f'Somebody reads the entry {number} of a longer list aloud.'\n"
        "print(json.dumps({'text': text, 'truncated': False}))\n"
    )
    page = OmegaConf.to_container(OmegaConf.load(folder / "mine.yaml"))["engine"]
    rows, rejected = generated(folder, engine={**page, "command": [sys.executable, str(folder / "llm.py")]})
    assert sorted(rows) == ["c0", "c1", "c2"] and {row["llm"] for row in rows.values()} == {"my-llm-8b"}
    assert rows["c2"]["response"] == "Somebody reads the entry 2 of a longer list aloud."
    assert "no answer to this one" in rejected["c3"]["detail"]


@of_page("benchmark")
def test_the_benchmark_of_the_page_reads_and_scores(folder):
    from nemo_desta.evaluation.files import read_items
    from nemo_desta.evaluation.run import evaluate
    from nemo_desta.evaluation.settings import EvaluateSettings

    (example,) = (json.loads(block) for block in blocks("benchmark", "json"))
    rows = [{**example, "id": f"r{i}", "noise": ["low", "high"][i % 2]} for i in range(4)]
    write_tone(folder / "data" / "clips" / "r1.wav")
    (folder / "data" / "rooms.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = read_items("my_benchmark.Rooms", folder / "data")
    assert [item.id for item in items] == ["r0", "r1", "r2", "r3"]
    assert items[0].audio == folder / "data" / "clips" / "r1.wav" and items[0].choices == ("kitchen", "church")

    answers = ["church", "kitchen", "It is a church.", "no idea"]
    given = [{**row, "prediction": answer} for row, answer in zip(rows, answers, strict=True)]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    settings = {"output": "out", "predictions": {"my_benchmark.Rooms": "answers.jsonl"}}
    found = evaluate(parse(EvaluateSettings, settings, "evaluate"))["benchmarks"]["my_benchmark.Rooms"]
    assert found["strict"]["accuracy"] == 0.5 and found["strict"]["num_unparsed"] == 1
    assert found["strict"]["by"]["noise"] == {
        "low": {"accuracy": 1.0, "count": 2},
        "high": {"accuracy": 0.0, "count": 2},
    }
    assert "official: this benchmark has no official script" in found["left_out"]


@of_page("benchmark")
def test_a_model_is_asked_the_items_of_the_benchmark(folder):
    from nemo_desta.evaluation.run import evaluate
    from nemo_desta.evaluation.settings import EvaluateSettings
    from nemo_desta.testing.models import tiny_config

    (example,) = (json.loads(block) for block in blocks("benchmark", "json"))
    write_tone(folder / "data" / example["audio"])
    (folder / "data" / "rooms.jsonl").write_text(json.dumps(example) + "\n")
    DestaModel(tiny_config(folder / "parts", kind="llama")).save_pretrained(folder / "model")
    settings = {"output": "out", "benchmarks": ["my_benchmark.Rooms"], "data_root": "data", "model": "model"}
    settings |= {"device": "cpu", "controls": {"items": 0}, "text_kept": {"prompts": 0, "texts": 0}}
    settings |= {"sampling": {"temperature": 0.0, "max_new_tokens": 4}, "progress": False}
    evaluate(parse(EvaluateSettings, settings, "evaluate"))
    asked = json.loads((folder / "out" / "my_benchmark.Rooms" / "prompts.jsonl").read_text())
    assert "Which room is it?" in asked["messages"][-1]["content"] and "church" in asked["messages"][-1]["content"]
