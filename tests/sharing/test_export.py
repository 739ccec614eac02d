"""An export is a folder for others: complete, without paths of this machine, opened like any model, LoRA apart."""

import hashlib
import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_desta.core.fingerprint import IdentityMismatch
from nemo_desta.core.folder import write_folder
from nemo_desta.errors import ConfigError
from nemo_desta.models.desta import DestaModel
from nemo_desta.sharing.export import export_model
from nemo_desta.sharing.references import refer, without_paths
from nemo_desta.testing.data import tiny_tokenizer


def logits(llm):
    with torch.no_grad():
        return llm(input_ids=torch.arange(20)[None] % 100).logits


def texts(folder):
    return {file: file.read_text() for file in folder.rglob("*") if file.suffix in (".json", ".md", ".jinja")}


def test_an_export_opens_and_holds_what_was_trained(place, parts, tmp_path):
    folder = export_model(place.path / "run", tmp_path / "mine")
    assert {file.name for file in folder.iterdir()} == {
        "README.md",
        "training.json",
        "config.json",
        "projector.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    } | ({"special_tokens_map.json"} if (folder / "special_tokens_map.json").exists() else set())  # transformers 4
    again = DestaModel.from_pretrained(folder, **parts)
    for name, tensor in place.model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert [item.name for item in tmp_path.iterdir()] == ["mine"]  # nothing half-written is left beside it


@pytest.mark.parametrize("source", ["run", "lora_model"])
def test_no_path_of_this_machine_is_exported(place, tmp_path, source, caplog):
    folder = export_model(place.path / source, tmp_path / "mine")
    for file, text in texts(folder).items():
        assert str(place.path) not in text and str(tmp_path) not in text and "/tmp" not in text, file
    config = json.loads((folder / "config.json").read_text())
    assert config["model"]["llm"]["path"] == "llm"
    assert config["model"]["perception"]["encoders"]["beats"]["path"] == "beats.pt"
    for words in ("llm: no hub id", "llm=...", "encoders.whisper: no hub id", "encoders.beats: no hub id"):
        assert words in caplog.text


def test_a_part_that_no_hub_has_is_asked_for(place, parts, tmp_path, monkeypatch):
    folder = export_model(place.path / "run", tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"llm: nothing at 'llm'\. Say where it is: llm=<path>$"):
        DestaModel.from_pretrained(folder)
    with pytest.raises(FileNotFoundError, match="encoders.whisper: nothing at 'whisper'"):
        DestaModel.from_pretrained(folder, llm=parts["llm"])


def test_an_export_refuses_another_llm(place, parts, tmp_path):
    folder = export_model(place.path / "run", tmp_path / "mine")
    other = shutil.copytree(parts["llm"], tmp_path / "other")
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**settings, "rms_norm_eps": 0.1}))
    with pytest.raises(IdentityMismatch, match=r"llm: .*other' is not .*\('llm' then\): config.json \(expected"):
        DestaModel.from_pretrained(folder, **{**parts, "llm": str(other)})


def test_a_part_that_changed_since_is_not_exported_in_silence(place, tmp_path):
    run = shutil.copytree(place.path / "run", tmp_path / "run")
    other = tmp_path / "llm"
    shutil.copytree(place.path / "parts" / "llm", other)
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + "\n")
    with pytest.raises(IdentityMismatch, match="llm: .*tokenizer.json"):
        export_model(run, tmp_path / "mine", llm=str(other))
    assert not (tmp_path / "mine").exists()
    export_model(run, tmp_path / "mine", llm=str(other), check_identity=False)


def test_a_hub_id_is_written_where_it_is_given_or_known(place, tmp_path):
    run = shutil.copytree(place.path / "run", tmp_path / "run")
    encoders = {"whisper": "openai/whisper-large-v3"}
    folder = export_model(run, tmp_path / "mine", llm="Qwen/Qwen3-4B", encoders=encoders, name="me/mine")
    config = json.loads((folder / "config.json").read_text())
    assert config["model"]["llm"]["path"] == config["references"]["llm"]["source"] == "Qwen/Qwen3-4B"
    assert config["model"]["perception"]["encoders"]["whisper"]["path"] == "openai/whisper-large-v3"
    assert set(config["frozen"]) == {"llm", "encoders.whisper", "encoders.beats"}
    card = (folder / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["base_model"] == ["Qwen/Qwen3-4B", "openai/whisper-large-v3"]
    assert 'from_pretrained("me/mine", encoders={"beats": "<path of beats.pt>"})' in card
    assert "| llm | `Qwen/Qwen3-4B` |  | Apache-2.0 |" in card


def test_names_of_parts_come_from_where_they_are(tmp_path):
    cached = tmp_path / "models--meta-llama--Llama-3.1-8B-Instruct" / "snapshots" / ("0" * 40)
    cached.mkdir(parents=True)
    assert refer(str(cached))[:3] == ("meta-llama/Llama-3.1-8B-Instruct", True, "0" * 40)
    (tmp_path / "my_copy").mkdir()
    (tmp_path / "my_copy" / "config.json").write_text('{"_name_or_path": "openai/whisper-small"}')
    assert refer(str(tmp_path / "my_copy"))[:2] == ("openai/whisper-small", True)
    (tmp_path / "my_copy" / "config.json").write_text(json.dumps({"_name_or_path": str(tmp_path / "elsewhere")}))
    assert refer(str(tmp_path / "my_copy"))[:2] == ("my_copy", False)
    assert refer("package:demo/assets/llm")[:2] == ("package:demo/assets/llm", True)
    assert refer("Qwen/Qwen3-4B")[:2] == ("Qwen/Qwen3-4B", True)


def test_paths_are_told_from_other_words(tmp_path):
    given = {"a": [str(tmp_path / "x.json")], "b": "/no_think", "c": "x/y", "d": "~/data/x", "e": 0.5}
    assert without_paths(given) == {"a": ["x.json"], "b": "/no_think", "c": "x/y", "d": "x", "e": 0.5}


def test_the_tokenizer_is_written_for_transformers_4_and_5(tmp_path):
    """Which know each other's classes and lists of special tokens only in the older form."""
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|voice|>"]})
    description = {"model": {"prompt": {"audio_locator_tag": "<|AUDIO|>"}}}
    folder = write_folder(tmp_path / "model", description, {"x": torch.zeros(1)}, tokenizer)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast" and "is_local" not in settings
    assert settings["additional_special_tokens"] == ["<|im_start|>", "<|voice|>"]
    again, text = AutoTokenizer.from_pretrained(folder), "<|im_start|>user\nhi<|voice|>"
    assert again(text).input_ids == tokenizer(text).input_ids
    assert again.all_special_ids == tokenizer.all_special_ids and again.chat_template == tokenizer.chat_template


def test_whole_hashes_are_those_of_sha256sum(place, tmp_path):
    config = json.loads(
        (export_model(place.path / "run", tmp_path / "m", full_hashes=True) / "config.json").read_text()
    )
    weights = place.path / "parts" / "llm" / "model.safetensors"
    found = config["references"]["llm"]["sha256"]["model.safetensors"]
    assert found == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_the_card_says_what_the_run_knows(place, tmp_path):
    card = (export_model(place.path / "run", tmp_path / "mine") / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["library_name"] == "nemo_desta" and metadata["pipeline_tag"] == "audio-text-to-text"
    assert metadata["datasets"] == ["org/birds"] and "license" not in metadata and "base_model" not in metadata
    count = sum(parameter.numel() for _, parameter in place.model.trained_parameters())
    for fact in (
        f"projector ({count:,} parameters)",
        "| optimiser steps | 1200 |",
        "`torch.optim.AdamW` (lr 0.01)",
        "at most 12 rows or 8,192 positions, x 8 data-parallel, x 2 accumulated",
        "| train-00000 | 5,200 |  | org/birds (5,000), bells\\|whistles (200) |",
        "7 of 9,000 rows",
        "| `val_loss` | 1.2500 |",
        "MIT (microsoft/unilm)",
        "the line `license:`",
    ):
        assert fact in card, fact


def test_a_card_claims_nothing_that_is_not_known(place, tmp_path):
    card = (export_model(place.path / "lora_model", tmp_path / "mine") / "README.md").read_text()
    assert card.count("Not recorded") == 2 and "optimiser steps" not in card
    assert "LoRA on the LLM (" in card and "r 4, alpha 16" in card


class TestLora:
    def test_peft_opens_it_over_the_bare_llm(self, place, tmp_path):
        from peft import PeftModel

        folder = export_model(place.path / "lora_model", tmp_path / "mine")
        bare = AutoModelForCausalLM.from_pretrained(place.config["llm"]["path"]).eval()
        plain = logits(bare)
        opened = PeftModel.from_pretrained(bare, folder / "lora").eval()
        assert torch.equal(logits(opened), logits(place.lora.llm))
        assert (logits(opened) - plain).abs().max() > 1e-3

    def test_the_whole_model_opens_with_it(self, place, parts, tmp_path):
        folder = export_model(place.path / "lora_model", tmp_path / "mine")
        again = DestaModel.from_pretrained(folder, **parts)
        assert torch.equal(logits(again.llm), logits(place.lora.llm))
        assert set(again.state_dict()) == set(place.lora.state_dict())
        assert not [name for name in load_file(folder / "projector.safetensors") if "lora" in name]

    @pytest.mark.parametrize("source", ["run", "lora_model"])
    def test_an_export_of_an_export_is_the_same(self, place, parts, tmp_path, source):
        first = export_model(place.path / source, tmp_path / "first", name="x")
        where = {"llm": parts["llm"], "encoders": parts["encoders"]}
        second = export_model(first, tmp_path / "second", name="x", **where)
        assert {f.name: f.read_bytes() for f in first.rglob("*") if f.is_file()} == {
            f.name: f.read_bytes() for f in second.rglob("*") if f.is_file()
        }


class TestWhere:
    def test_what_is_at_the_target_is_kept(self, place, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("years of work")
        with pytest.raises(FileExistsError, match="no earlier export, so it is left alone"):
            export_model(place.path / "run", tmp_path / "mine", overwrite=True)
        with pytest.raises(FileExistsError, match="no earlier export"):
            export_model(place.path / "run", place.path / "lora_model", overwrite=True)
        with pytest.raises(FileExistsError, match="holds what is to be exported"):
            export_model(place.path / "run", place.path / "run", overwrite=True)
        assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"

    def test_an_earlier_export_is_replaced_when_asked(self, place, tmp_path):
        folder = export_model(place.path / "lora_model", tmp_path / "mine")
        with pytest.raises(FileExistsError, match="overwrite=true"):
            export_model(place.path / "run", folder)
        export_model(place.path / "run", folder, overwrite=True)
        assert not (folder / "lora").exists() and [item.name for item in tmp_path.iterdir()] == ["mine"]

    def test_a_failure_leaves_nothing(self, place, tmp_path):
        with pytest.raises(ConfigError, match="full_hashes=true .* not here: llm"):
            run = shutil.copytree(place.path / "run", tmp_path / "run")
            description = json.loads((run / "model" / "config.json").read_text())
            description["model"]["llm"]["path"] = "nobody/has-this"
            (run / "model" / "config.json").write_text(json.dumps(description))
            export_model(run, tmp_path / "mine", full_hashes=True)
        assert [item.name for item in tmp_path.iterdir()] == ["run"]

    def test_the_newest_of_a_run_is_taken(self, place, tmp_path):
        """The model of an older end of the run, or a checkpoint written since."""
        run = shutil.copytree(place.path / "run", tmp_path / "exp" / "run")
        saved: dict = {"state_dict": place.model.state_dict(), "global_step": 77, "callbacks": {}}
        saved["callbacks"]["x"] = {"monitor": "val_loss", "current_score": torch.tensor(0.5)}
        place.model.on_save_checkpoint(saved)
        (run / "checkpoints").mkdir()
        torch.save(saved, run / "checkpoints" / "step=77-last.ckpt")
        card = (export_model(run.parent, tmp_path / "mine") / "README.md").read_text()
        assert "| optimiser steps | 77 |" in card and "| `val_loss` | 0.5000 |" in card
        (run / "model" / "config.json").touch()
        card = (export_model(run, tmp_path / "mine", overwrite=True) / "README.md").read_text()
        assert "| optimiser steps | 1200 |" in card

    def test_where_nothing_was_trained_is_said(self, tmp_path, place):
        with pytest.raises(FileNotFoundError, match="neither a model folder .* nor a checkpoint"):
            export_model(tmp_path, tmp_path / "mine")
        for name in ("a", "b"):
            shutil.copytree(place.path / "run", tmp_path / name)
        with pytest.raises(FileNotFoundError, match="holds several runs: a, b; give one"):
            export_model(tmp_path, tmp_path / "mine")
        torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
        with pytest.raises(ConfigError, match="no checkpoint of a nemo_desta training run"):
            export_model(tmp_path / "other.ckpt", tmp_path / "mine")
