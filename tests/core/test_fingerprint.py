"""A projector meets the frozen parts that it was trained with, and others are refused by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_desta.config import ModelConfig, parse
from nemo_desta.core import frozen
from nemo_desta.core.fingerprint import IdentityMismatch, differences, fingerprint
from nemo_desta.core.folder import PROJECTOR_PREFIX
from nemo_desta.core.frozen import check_llm
from nemo_desta.errors import ConfigError
from nemo_desta.models.desta import DestaModel
from nemo_desta.testing.models import tiny_config, tiny_llm
from nemo_desta.testing.perception import tiny_beats, tiny_whisper


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A model folder over tiny parts."""
    torch.manual_seed(1)
    return DestaModel(tiny).save_pretrained(tmp_path_factory.mktemp("trained") / "model")


@pytest.fixture
def parts(tiny, tmp_path):
    """Copies of the parts, to be changed: LLM, Whisper, BEATs."""
    llm = shutil.copytree(tiny["llm"]["path"], tmp_path / "llm")
    encoders = tiny["perception"]["encoders"]
    whisper = shutil.copytree(encoders["whisper"]["path"], tmp_path / "whisper")
    return llm, whisper, shutil.copy(encoders["beats"]["path"], tmp_path / "other_name.pt")


def open_with(trained, parts, **more):
    llm, whisper, beats = parts
    encoders = {"whisper": str(whisper), "beats": str(beats)}
    return DestaModel.from_pretrained(trained, llm=str(llm), encoders=encoders, device="cpu", **more)


def change_one_weight(file):
    tensors = load_file(file)
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name][0, 0] += 1.0
    save_file(tensors, file, metadata={"format": "pt"})


def test_the_same_parts_elsewhere_are_welcome(trained, parts):
    llm, _, _ = parts
    (llm / "generation_config.json").write_text('{"temperature": 0.5, "do_sample": true}')
    (llm / "README.md").write_text("a card")
    (llm / "tokenizer.json").unlink()  # the model folder has its own
    open_with(trained, parts)


def test_an_llm_with_other_weights_is_refused_by_name(trained, parts, tiny):
    llm, _, _ = parts
    change_one_weight(llm / "model.safetensors")
    with pytest.raises(IdentityMismatch) as caught:
        open_with(trained, parts)
    message = str(caught.value)
    expected = fingerprint(tiny["llm"]["path"])["model.safetensors"].removeprefix("sampled:")[:12]
    found = fingerprint(llm)["model.safetensors"].removeprefix("sampled:")[:12]
    assert f"llm: '{llm}' is not what this projector was trained with ('{tiny['llm']['path']}' then)" in message
    assert f"model.safetensors (expected {expected}, found {found})" in message
    assert "config.json" not in message and "encoders." not in message
    assert "Say where the right one is: llm=<path>; or" in message and "check_identity=false" in message
    assert isinstance(caught.value, ConfigError)
    open_with(trained, parts, check_identity=False)


def test_every_part_that_is_wrong_is_named(trained, parts, tmp_path):
    _, whisper, _ = parts
    change_one_weight(whisper / "model.safetensors")
    settings = json.loads((whisper / "config.json").read_text())
    (whisper / "config.json").write_text(json.dumps({**settings, "dropout": 0.5}))
    beats = tiny_beats(tmp_path / "beats2.pt", seed=9)
    with pytest.raises(IdentityMismatch) as caught:
        open_with(trained, (parts[0], whisper, beats))
    message = str(caught.value)
    assert "encoders.whisper: " in message and "encoders.beats: " in message and "llm: " not in message
    assert "config.json (expected" in message and "model.safetensors (expected" in message
    assert "encoders={whisper: <path>, beats: <path>}" in message


def test_weights_that_are_gone_are_a_difference_and_further_files_are_not(tmp_path):
    folder = Path(tiny_whisper(tmp_path / "whisper"))
    saved = fingerprint(folder)
    shutil.copy(folder / "model.safetensors", folder / "model.fp32.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"older form")
    assert fingerprint(folder) == saved and differences(saved, folder) == []
    (folder / "model.safetensors").unlink()
    assert [(d.file, d.found) for d in differences(saved, folder)] == [("model.safetensors", None)]


def test_whole_hashes_see_what_samples_leave_out(tmp_path):
    file = tmp_path / "weights.pt"
    file.write_bytes(bytes(4_000_000))
    sampled, whole = fingerprint(file), fingerprint(file, full=True)
    data = bytearray(file.read_bytes())
    data[100_000] = 1  # between the first block and the second
    file.write_bytes(data)
    assert differences(sampled, file) == []
    assert [d.file for d in differences(whole, file)] == ["weights.pt"]
    data[-1] = 1
    file.write_bytes(data)
    assert [d.file for d in differences(sampled, file)] == ["weights.pt"]


def test_a_run_does_not_go_on_with_another_llm(tiny, tmp_path):
    config = tiny_config(tmp_path)
    model = DestaModel(config)
    saved: dict = {}
    model.on_save_checkpoint(saved)
    model.on_load_checkpoint(saved)
    change_one_weight(tmp_path / "llm" / "model.safetensors")
    with pytest.raises(IdentityMismatch, match="llm: .* model.safetensors .*model.perception.init_from"):
        model.on_load_checkpoint(saved)


def test_an_llm_of_another_width_is_refused_whatever_is_known(trained, parts, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=500, **shape)).save_pretrained(tmp_path / "wide")
    with pytest.raises(IdentityMismatch, match="are 48 wide, this projector was trained for 32"):
        open_with(trained, (tmp_path / "wide", *parts[1:]), check_identity=False)


def forget(trained, folder, part):
    """The model folder without the fingerprint of a part, as after an import."""
    folder = shutil.copytree(trained, folder)
    description = json.loads((folder / "config.json").read_text())
    del description["frozen"][part]
    (folder / "config.json").write_text(json.dumps(description))
    return folder


def test_without_a_fingerprint_the_vocabulary_tells_llms_apart(trained, parts, tmp_path):
    folder = forget(trained, tmp_path / "model", "llm")
    change_one_weight(parts[0] / "model.safetensors")
    open_with(folder, parts)  # nothing is known about its weights
    other = tiny_llm(tmp_path / "llama", kind="llama", template="llama3")
    with pytest.raises(IdentityMismatch, match="tokens have another id or none") as caught:
        open_with(folder, (other, *parts[1:]))
    assert "llm=<path>" in str(caught.value) and "check_identity=false" in str(caught.value)


def test_an_llm_with_too_few_embeddings_is_refused(trained, parts, tmp_path):
    folder = forget(trained, tmp_path / "model", "llm")
    settings = json.loads((parts[0] / "config.json").read_text())
    (parts[0] / "config.json").write_text(json.dumps({**settings, "vocab_size": 40}))
    with pytest.raises(IdentityMismatch, match="has 40 token embeddings, the tokenizer .* ids up to"):
        open_with(folder, parts)


def test_a_part_in_the_hubs_cache_is_compared_and_one_that_is_nowhere_is_named(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    saved = {"llm": fingerprint(tiny["llm"]["path"])}
    config = parse(ModelConfig, {**tiny, "llm": {"path": "me/llm"}})
    with pytest.raises(FileNotFoundError, match=r"llm: 'me/llm' is not on this machine.*llm=<path>"):
        frozen.fetch(saved, config)
    snapshot = tmp_path / "models--me--llm" / "snapshots" / ("a" * 40)
    shutil.copytree(tiny["llm"]["path"], snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    (snapshot / "tokenizer.json").unlink()  # nobody needed it
    frozen.fetch(saved, config)
    frozen.check_identity(saved, config)
    change_one_weight(snapshot / "model.safetensors")
    with pytest.raises(IdentityMismatch, match="llm: 'me/llm' is not what"):
        frozen.check_identity(saved, config)


@pytest.mark.parametrize("projector", ["window", "qformer", "window_qformer", "conv", "ensemble"])
@pytest.mark.parametrize("markers", [False, True])
def test_every_projector_shows_the_width_that_it_was_trained_for(tiny, tmp_path, projector, markers):
    from nemo_desta.perception.build import build_encoders, build_projector_for

    knobs = {"name": projector, "markers": markers, **({"num_heads": 4} if "qformer" in projector else {})}
    if projector == "ensemble":
        knobs = {"name": "ensemble", "members": {"one": {"name": "conv", "markers": markers}}}
    config = parse(ModelConfig, {**tiny, "perception": {**tiny["perception"], "projector": knobs}})
    encoders = build_encoders(config.perception)
    for width, is_right in ((32, True), (40, False)):
        tensors = build_projector_for(config.perception, encoders, width, output_rms=1.0).state_dict()
        named = {PROJECTOR_PREFIX + name: tensor for name, tensor in tensors.items()}
        if is_right:
            check_llm(config, named, compare_vocabulary=False)
        else:
            with pytest.raises(IdentityMismatch, match="are 32 wide, this projector was trained for 40"):
                check_llm(config, named, compare_vocabulary=False)
