"""What needs no vLLM: the entry point, and how vLLM's settings are changed or refused."""

import json
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from nemo_desta.config import LoraConfig, to_dict
from nemo_desta.core.fingerprint import IdentityMismatch
from nemo_desta.core.trust import UntrustedConfig
from nemo_desta.errors import ConfigError
from nemo_desta.hf.configuration import DestaConfig
from nemo_desta.testing.models import tiny_llm
from nemo_desta.vllm_plugin import register
from nemo_desta.vllm_plugin.chat import vllm_arguments, vllm_chat_engine
from nemo_desta.vllm_plugin.hooks import ModelHooks
from nemo_desta.vllm_plugin.served import served_parts, served_processor


@pytest.fixture
def settings(place):
    """(folder, overrides of the config) -> vLLM's ModelConfig, as far as it is read."""

    def make(folder=None, **overrides):
        config = DestaConfig.from_pretrained(folder or place.folder)
        for name, value in overrides.items():
            setattr(config, name, value)
        return SimpleNamespace(
            model=str(folder or place.folder),
            revision=None,
            hf_config=config,
            trust_remote_code=False,
            tokenizer_mode="auto",
            generation_config="auto",
            multimodal_config=SimpleNamespace(enable_mm_embeds=False),
        )

    return make


def changed(place, tmp_path, change):
    """A copy of the model folder with another config.json."""
    folder = tmp_path / "model"
    shutil.copytree(place.folder, folder)
    description = json.loads((folder / "config.json").read_text())
    change(description)
    (folder / "config.json").write_text(json.dumps(description))
    return folder


def test_settings_of_the_model_become_arguments_of_vllm(place, tmp_path):
    _, found = vllm_arguments(place.folder)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    assert found == {
        "model": str(place.folder),
        "trust_remote_code": False,
        "dtype": dtype,
        "hf_overrides": {"check_identity": True},
    }
    llm = place.config.llm.path
    folder = changed(place, tmp_path, lambda description: description["model"]["llm"].update(dtype="float16"))
    given = {"llm": llm, "check_identity": False, "allow_targets": ["a.b"], "trust_remote_code": True}
    _, found = vllm_arguments(folder, max_model_len=9, hf_overrides={"x": 1}, **given)
    assert (found["dtype"], found["trust_remote_code"], found["max_model_len"]) == (torch.float16, True, 9)
    assert found["hf_overrides"] == {"llm": llm, "check_identity": False, "allow_targets": ["a.b"], "x": 1}


def test_a_folder_never_grants_itself_trust(place, tmp_path):
    folder = changed(place, tmp_path, lambda description: description["model"]["llm"].update(trust_remote_code=True))
    with pytest.raises(UntrustedConfig):
        vllm_arguments(folder)


def test_a_folder_of_an_older_version_is_refused_with_what_to_do(place, tmp_path):
    folder = changed(place, tmp_path, lambda description: description.pop("architectures"))
    with pytest.raises(ConfigError, match="desta export"):
        vllm_arguments(folder)


def test_lora_is_refused_in_process(place, tmp_path, monkeypatch):
    config = replace(place.config, llm=replace(place.config.llm, lora=LoraConfig(r=4)))
    monkeypatch.setattr("nemo_desta.vllm_plugin.chat.vllm_arguments", lambda *_, **__: (config, {}))
    with pytest.raises(ConfigError, match="trained LoRA"):
        vllm_chat_engine(place.folder)


def test_register_is_silent_in_effect_without_a_vllm(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "vllm.model_executor.models.config", None)
    register()
    assert "cannot be served by this vLLM" in caplog.text


def test_prompts_are_ours_and_sampling_is_the_llms(place, settings):
    found = settings()
    ModelHooks.verify_and_update_model_config(found)
    assert found.tokenizer_mode == "nemo_desta"
    assert found.generation_config == place.config.llm.path


def test_a_generation_config_that_the_user_chose_is_kept(settings):
    found = settings()
    found.generation_config = "vllm"
    ModelHooks.verify_and_update_model_config(found)
    assert found.generation_config == "vllm"


def test_another_renderer_is_refused(settings):
    found = settings()
    found.tokenizer_mode = "hf"
    with pytest.raises(ConfigError, match="--tokenizer-mode hf"):
        ModelHooks.verify_and_update_model_config(found)


def test_vectors_made_elsewhere_are_refused(settings):
    found = settings()
    found.multimodal_config.enable_mm_embeds = True
    with pytest.raises(ConfigError, match="--enable-mm-embeds"):
        ModelHooks.verify_and_update_model_config(found)


def test_a_folder_without_the_audio_token_is_refused(place, settings, tmp_path):
    folder = changed(place, tmp_path, lambda d: d.pop("audio_token_index"))
    with pytest.raises(ConfigError, match="Export the model again"):
        served_processor(settings(folder))


def test_code_of_the_config_is_not_run(place, settings, tmp_path):
    folder = changed(place, tmp_path, lambda d: d["model"]["perception"]["projector"].update(name="os.system"))
    with pytest.raises(UntrustedConfig, match="os.system"):
        served_processor(settings(folder))


def test_a_model_that_trained_lora_needs_it(place, settings, tmp_path):
    lora = to_dict(replace(LoraConfig(), r=32))
    folder = changed(place, tmp_path, lambda d: d["model"]["llm"].update(lora=lora))
    found = SimpleNamespace(model_config=settings(folder), lora_config=None)
    with pytest.raises(ConfigError, match="export it"):
        ModelHooks.verify_and_update_config(found)
    (folder / "lora").mkdir()
    with pytest.raises(ConfigError, match="--enable-lora --max-lora-rank 32 --default-mm-loras"):
        ModelHooks.verify_and_update_config(found)
    found.lora_config = object()
    ModelHooks.verify_and_update_config(found)


def test_a_model_without_lora_needs_none(settings):
    ModelHooks.verify_and_update_config(SimpleNamespace(model_config=settings(), lora_config=None))


def test_another_llm_is_refused_unless_the_check_is_off(place, settings, tmp_path):
    other = tiny_llm(tmp_path / "other", initializer_range=0.3, head_dim=64)
    found = settings(llm=str(other))
    assert found.hf_config.text_config.initializer_range == 0.3
    with pytest.raises(IdentityMismatch, match="llm: "):
        served_parts(found)
    config, tensors = served_parts(settings(llm=str(other), check_identity=False))
    assert config.llm.path == str(other) and tensors


def test_token_counts_need_no_weights(place, settings):
    counts = served_processor(settings()).num_audio_tokens
    for num_samples in (1, 1_600, 20_000, 95 * 16_000):
        assert counts(num_samples) == place.fresh.num_audio_tokens(num_samples)
