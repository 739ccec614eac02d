"""Released models become ours and answer as the originals did; files that are not theirs are refused with a reason."""

import json
import pickle
import shutil

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from nemo_desta.answering.chat import encode
from nemo_desta.errors import ConfigError
from nemo_desta.models import checkpoint
from nemo_desta.models.desta import DestaModel
from nemo_desta.sharing import released
from nemo_desta.testing.data import tiny_tokenizer
from nemo_desta.testing.perception import tiny_whisper
from tests.perception.projector.recipe import FIXTURES, load_arrays, load_weights

SOURCE = FIXTURES / "desta25_model"
CASES = json.loads((SOURCE / "generate.json").read_text())
CONNECTOR = "perception.connector."


def connector():
    return {CONNECTOR + name: tensor for name, tensor in load_weights("desta25_qformer", "connector").items()}


@pytest.fixture(scope="module")
def download(tmp_path_factory):
    """The folder as the original publishes it."""
    folder = tmp_path_factory.mktemp("desta25")
    shutil.copytree(SOURCE / "llm", folder / "llm")
    shutil.copytree(FIXTURES / "desta25_rows" / "tokenizer", folder / "llm", dirs_exist_ok=True)
    shutil.copytree(FIXTURES / "whisper", folder / "openai" / "whisper-tiny")
    shutil.copy(SOURCE / "config.json", folder)
    save_file(connector(), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def model(download):
    return checkpoint.import_released("desta25", download)


def conversations(name):
    found = json.loads(json.dumps(CASES[name]["conversations"]))
    for message in (message for conversation in found for message in conversation):
        for audio in message.get("audios", ()):
            folder = FIXTURES / "whisper" if audio["audio"] == "clip0.wav" else SOURCE
            audio["audio"] = folder / audio["audio"]
    return found


def test_what_the_llm_reads_is_what_the_originals_read(model):
    with np.load(SOURCE / "embeds.npz") as recorded:
        assert len(recorded.files) == 3
        for name in recorded.files:
            with torch.no_grad():
                found = model.embed(encode(model, conversations(name))).inputs_embeds
            assert found.shape == recorded[name].shape
            torch.testing.assert_close(found, torch.from_numpy(recorded[name]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_answers_are_the_originals(model, name):
    assert model.generate(conversations(name), max_new_tokens=24, do_sample=False).tolist() == CASES[name]["ids"]


def test_answers_do_not_change_when_the_tags_stand_in_the_text(model):
    chats = conversations("two_audios_given_text")
    for message in chats[0]:
        message["content"] = message["content"].replace("<|AUDIO|>", "<start_audio><|AUDIO|><end_audio>", 1)
    ids = model.generate(chats, max_new_tokens=24, do_sample=False).tolist()
    assert ids == CASES["two_audios_given_text"]["ids"]


def test_audio_beyond_the_window_is_heard_and_a_batch_equals_its_clips_alone(model):
    window, per_window = 6 * 16_000, 8
    assert [model.num_audio_tokens(n) for n in (1, window, window + 1, 3 * window)] == [8, 8, 16, 24]
    samples = soundfile.read(SOURCE / "clip1.flac", dtype="float32")[0]
    long = torch.from_numpy(np.concatenate([samples, samples[:50_000]]))
    with torch.no_grad():
        alone, lens = model.perceive(long[None], torch.tensor([len(long)]))
        first = model.perceive(long[None, :window], torch.tensor([window]))[0]
        batch = torch.zeros(2, len(long))
        batch[0, :20_000], batch[1] = long[:20_000], long
        together, both = model.perceive(batch, torch.tensor([20_000, len(long)]))
        short = model.perceive(long[None, :20_000], torch.tensor([20_000]))[0]
    assert lens.tolist() == [16] and both.tolist() == [8, 16]
    torch.testing.assert_close(alone[:, :per_window], first, atol=1e-5, rtol=0)
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(together[:1, :per_window], short, atol=1e-5, rtol=0)


def test_a_written_folder_opens_and_answers_without_the_download(model, download, tmp_path):
    folder = checkpoint.write_released("desta25", download, tmp_path / "ours")
    shutil.copytree(download / "llm", tmp_path / "llm")
    again = DestaModel.from_pretrained(folder, device="cpu", llm=str(tmp_path / "llm"))
    name = "two_audios_given_text"
    assert again.generate(conversations(name), max_new_tokens=24, do_sample=False).tolist() == CASES[name]["ids"]


@pytest.mark.parametrize("name", json.loads((SOURCE / "full_size_names.json").read_text()))
def test_the_released_sizes_have_the_papers_number_of_parameters(name, tmp_path):
    entry = json.loads((SOURCE / "full_size_names.json").read_text())[name]
    with torch.device("meta"):
        state = {CONNECTOR + key: torch.empty(shape) for key, shape in entry["state_dict"].items()}
    read = released._desta25 if "desta25" in name else released._desta2
    original = {"llm_model_id": "a/b", "encoder_model_id": entry["encoder"], "connector_mode": "qformer_1"}
    found = read(tmp_path, original, state, None, None)
    assert sum(tensor.numel() for tensor in found.tensors.values()) == entry["parameters"]
    assert found.config.perception.encoders["whisper"]["whole_windows"] is True
    assert found.config.perception.projector["num_queries"] == 64


class TestDesta2:
    """DeSTA2 publishes its connector as a torch file, and puts audio into a message of its own."""

    @pytest.fixture(scope="class")
    def folder(self, download, tmp_path_factory):
        folder = tmp_path_factory.mktemp("desta2")
        torch.save(load_weights("desta25_qformer", "connector"), folder / "qformer_connector.pth")
        shutil.copytree(download / "openai" / "whisper-tiny", folder / "whisper-tiny")
        (folder / "config.json").write_text('{"encoder_model_id": "whisper-tiny"}')
        return folder

    def test_the_same_weights_hear_the_same(self, model, folder, download):
        ours = checkpoint.import_released("desta2", folder, llm=str(download / "llm"))
        clip = torch.from_numpy(soundfile.read(SOURCE / "clip3.flac", dtype="float32")[0])[None]
        with torch.no_grad():
            found = ours.perceive(clip, torch.tensor([clip.shape[1]]))[0]
            expected = model.perceive(clip, torch.tensor([clip.shape[1]]))[0]
        assert torch.equal(found, expected)

    def test_audio_speaks_for_itself_before_the_question(self, folder, download):
        ours = checkpoint.import_released("desta2", folder, llm=str(download / "llm"))
        message = {
            "role": "user",
            "content": "<|AUDIO|>\nWhat is said?",
            "audios": [{"audio": "x", "text": "one two"}],
        }
        ids = ours.prompts.prompt([message]).ids
        slot = ids.index(-1)
        before, after = (ours.tokenizer.decode(part) for part in (ids[:slot], ids[slot + 1 :]))
        assert before == "<|begin_of_text|><|start_header_id|>audio<|end_header_id|>\n\n"
        assert after.startswith("one two<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhat is said?<|eot_id|>")


class TestAlarm:
    """ALARM's single-encoder Whisper model: an adapter, two markers, and a copy of everything that is frozen."""

    @pytest.fixture(scope="class")
    def state(self):
        adapter = load_weights("alarm", "adapter_whisper_batchnorm")
        state = {f"model.audio_adapter.adapters.whisper.{name}": tensor for name, tensor in adapter.items()}
        state |= {
            f"model.audio_{end}_emb": torch.full((1, 48), value) for end, value in (("start", 0.5), ("end", -0.5))
        }
        frozen = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight")
        return state | {name: torch.zeros(2, 2) for name in frozen}

    @pytest.fixture(scope="class")
    def folder(self, state, tmp_path_factory):
        folder = tmp_path_factory.mktemp("alarm")
        tokenizer = tiny_tokenizer("thinking")
        shape = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = Qwen3Config(vocab_size=len(tokenizer), num_key_value_heads=2, head_dim=12, **shape)
        Qwen3ForCausalLM(config).save_pretrained(folder / "llm")
        tokenizer.save_pretrained(folder / "llm")
        tiny_whisper(folder / "whisper", window_secs=2.0, hidden_size=40, num_layers=6)
        adapter = {
            "encoder_name": "whisper",
            "adapter_name": "downsampler_conformer",
            "audio_encoder_layers": [1, 3, 4, 6],
            "encoder_embedding_dim": 40,
            "adapter_embedding_dim": 32,
            "llm_embedding_dim": 48,
            "norm_type": "batch",
        }
        original = {"audio_adapter_configs": [adapter], "audio_fusion_config": {"fusion_type": "sum"}}
        (folder / "config.json").write_text(json.dumps(original))
        torch.save(state, folder / "pytorch_model.bin")
        return folder

    @pytest.fixture(scope="class")
    def parts(self, folder):
        return {"llm": str(folder / "llm"), "encoders": {"whisper": str(folder / "whisper")}}

    def test_its_projector_is_the_originals(self, folder, parts):
        model = checkpoint.import_released("alarm", folder, original_masks=True, **parts)
        adapter = model.perception.projector.adapters["whisper"]
        expected = load_arrays("alarm", "adapter_whisper_batchnorm_odd")
        with torch.no_grad():
            out, lens = adapter(list(expected["taps"]), expected["lengths"])
        assert lens.tolist() == expected["out_lengths"].tolist()
        torch.testing.assert_close(out, expected["output"], atol=1e-5, rtol=0)

    def test_markers_stand_around_the_clip_before_the_text(self, folder, parts):
        model = checkpoint.import_released("alarm", folder, **parts)
        with torch.no_grad():
            vectors, lens = model.perceive(torch.randn(1, 16_000), torch.tensor([16_000]))
        assert lens.tolist() == [25 + 2] == [model.num_audio_tokens(16_000)]
        assert (vectors[0, 0] == 0.5).all() and (vectors[0, 26] == -0.5).all()
        chat = [{"role": "user", "content": "What?", "audios": [np.zeros(16_000, np.float32)]}]
        ids = model.prompts.prompt(chat).ids
        assert model.tokenizer.decode(ids[: ids.index(-1)]).endswith("user\n")
        assert model.chat(chat, max_new_tokens=3).num_new_tokens <= 3


class Exploit:
    """What a pickle can do; it must never run."""

    def __reduce__(self):
        return (open, ("stolen", "w"))


class TestRefusals:
    def copy(self, download, tmp_path, state=None, **config):
        shutil.copytree(download, tmp_path / "copy")
        if state is not None:
            save_file(state, tmp_path / "copy" / "model.safetensors")
        if config:
            original = json.loads((SOURCE / "config.json").read_text())
            (tmp_path / "copy" / "config.json").write_text(json.dumps(original | config))
        return tmp_path / "copy"

    def test_unknown_kind(self, download):
        with pytest.raises(ConfigError, match="'desta3'.*Did you mean 'desta2'"):
            checkpoint.import_released("desta3", download)

    def test_no_folder_no_weights_a_file(self, download, tmp_path):
        with pytest.raises(FileNotFoundError, match="no folder '/no/such"):
            checkpoint.import_released("desta25", "/no/such/folder")
        with pytest.raises(FileNotFoundError, match="no weights in"):
            checkpoint.import_released("desta2", tmp_path)
        with pytest.raises(ConfigError, match="give the folder that holds it"):
            checkpoint.import_released("desta25", download / "model.safetensors")

    def test_a_tensor_without_a_home(self, download, tmp_path):
        folder = self.copy(download, tmp_path, connector() | {CONNECTOR + "extra.weight": torch.zeros(2)})
        with pytest.raises(ValueError, match=r"'extra.weight' is no tensor of the released connector"):
            checkpoint.import_released("desta25", folder)

    def test_a_missing_tensor(self, download, tmp_path):
        state = connector()
        del state[CONNECTOR + "proj.1.bias"]
        with pytest.raises(ValueError, match="lack 'output.bias'"):
            checkpoint.import_released("desta25", self.copy(download, tmp_path, state))

    def test_a_tensor_of_another_shape(self, download, tmp_path):
        state = connector() | {CONNECTOR + "proj.1.bias": torch.zeros(7)}
        with pytest.raises(
            ValueError, match=r"'output.bias' of the released weights is \(7,\), the projector's \(96,\)"
        ):
            checkpoint.import_released("desta25", self.copy(download, tmp_path, state))

    def test_weights_of_something_else(self, download, tmp_path):
        folder = self.copy(download, tmp_path, {"model.weight": torch.zeros(2)})
        with pytest.raises(ConfigError, match="no tensor is called '...layer_prompts.0'"):
            checkpoint.import_released("desta25", folder)

    def test_a_config_of_something_else(self, download, tmp_path):
        folder = self.copy(download, tmp_path)
        (folder / "config.json").write_text("{}")
        with pytest.raises(ConfigError, match="lacks llm_model_id, encoder_model_id, connector_mode"):
            checkpoint.import_released("desta25", folder)

    def test_an_encoder_of_another_width(self, download, tmp_path):
        tiny_whisper(tmp_path / "wide", hidden_size=64)
        with pytest.raises(ConfigError, match="encoder of width 48.*has 64"):
            checkpoint.import_released("desta25", download, encoders={"whisper": str(tmp_path / "wide")})

    def test_lora_and_other_connectors(self, download, tmp_path):
        with pytest.raises(ConfigError, match="trained LoRA"):
            checkpoint.import_released("desta25", self.copy(download, tmp_path, use_lora=True))

    def test_a_pickle_that_would_run_code_is_not_opened(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with open(tmp_path / "qformer_connector.pth", "wb") as file:
            pickle.dump({"layer_prompts.0": Exploit()}, file)
        with pytest.raises(ConfigError, match="is not opened: it holds more than tensors"):
            checkpoint.import_released("desta2", tmp_path)
        torch.save({"state_dict": {"layer_prompts.0": Exploit()}}, tmp_path / "qformer_connector.pth")
        with pytest.raises(ConfigError, match="holds more than tensors"):
            checkpoint.import_released("desta2", tmp_path)
        assert not (tmp_path / "stolen").exists()

    def test_a_shard_outside_the_folder(self, download, tmp_path):
        folder = self.copy(download, tmp_path)
        index = {"weight_map": {"x": "../model.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ConfigError, match="outside its folder"):
            checkpoint.import_released("desta25", folder)
