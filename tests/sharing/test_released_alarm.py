"""ALARM's released models, encoders included, against vectors that the originals wrote at a tiny size."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config

from nemo_desta.core.build import build_perception
from nemo_desta.core.folder import open_model
from nemo_desta.errors import ConfigError
from nemo_desta.perception import fused
from nemo_desta.perception.encoders.hf import HFEncoder
from nemo_desta.sharing.alarm_encoders import PUBLISHED, prefix_of
from nemo_desta.sharing.released import read_released, write_released
from nemo_desta.testing.data import tiny_tokenizer
from tests.perception.encoders.test_muq_encoder import by_torchaudio

SOURCE = Path(__file__).parents[1] / "fixtures" / "alarm_encoders"
SIDES = ("w2vbert", "muq", "sslam")
NAMES = ("whisper", *SIDES)
WIDTH = 32


class WithFirstInput(HFEncoder):
    """w2v-BERT whose first layer is what enters block 1: the tiny originals read it, the released ones do not."""

    def _block_outputs(self, values, valid):
        entered = []
        block = self.model.get_submodule(self.facts.blocks)[0]
        hook = block.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
        self.layer_ids = (2, 3)
        try:
            outputs = super()._block_outputs(values, valid)
        finally:
            self.layer_ids = (1, 2, 3)
            hook.remove()
        return [entered[0], *outputs]


def released_folder(kind, folder, change=None):
    """A folder as ALARM publishes it; w2v-BERT's tap of its block 1's input is read as block 1 (`WithFirstInput`)."""
    folder.mkdir(exist_ok=True)
    config = json.loads((SOURCE / kind / "config.json").read_text())
    for adapter in config["audio_adapter_configs"]:
        if adapter["encoder_name"] == "w2vbert":
            adapter["audio_encoder_layers"] = [1, 2, 3]
    (folder / "config.json").write_text(json.dumps(config | (change or {})))
    state = load_file(SOURCE / kind / "model.safetensors")
    if kind == "alarm_p":  # stored without its encoders, which are those of alarm_ca
        encoders = load_file(SOURCE / "alarm_ca" / "model.safetensors")
        state |= {name: tensor for name, tensor in encoders.items() if ".audio_encoder." in name}
    save_file(state, folder / "model.safetensors")
    return folder


def build(released):
    model = build_perception(released.config.perception, WIDTH, 1.0).eval()
    missing, surplus = model.load_state_dict(
        {name.removeprefix("perception."): tensor for name, tensor in released.tensors.items()}, strict=False
    )
    assert not surplus and all(name.startswith("encoders.") for name in missing)
    if (encoder := model.encoders._modules.get("w2vbert")) is not None:
        encoder.__class__ = WithFirstInput
    model.sampling_rate = 16_000  # of the recorded clips: each encoder is to get them resampled once
    return model


@pytest.fixture(scope="module", params=["alarm_ca", "alarm_p", "al_whisper"])
def case(request, alarm_configs, tmp_path_factory):
    """A released model with both kinds of masks; encoders from the released file alone."""
    kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    source = released_folder(kind, folder / "source")
    used = {name: alarm_configs[name] for name in NAMES if kind != "al_whisper" or name == "whisper"}
    models = {}
    for masks in (True, False):
        options = {"encoders": used, "original_masks": masks, "encoder_folder": folder / "encoders"}
        released = read_released("alarm", source, llm="llm", **options)
        models[masks] = build(released)
    with np.load(SOURCE / kind / "audio.npz") as recorded:
        return kind, models, dict(recorded)


def clips(*names):
    loaded = [torch.from_numpy(soundfile.read(SOURCE / f"{name}.wav", dtype="float32")[0]) for name in names]
    return torch.nn.utils.rnn.pad_sequence(loaded, batch_first=True), torch.tensor([len(clip) for clip in loaded])


@torch.no_grad()
def heard(model, *names):
    """Vectors of each clip between the markers."""
    vectors, lens = model(*clips(*names))
    assert lens.tolist() == [model.num_tokens(length) for length in clips(*names)[1].tolist()]
    return [vectors[row, 1 : length - 1] for row, length in enumerate(lens.tolist())]


def close(found, expected):
    """To 1e-5 of the largest magnitude, 3 to 20; most of the difference comes from filter banks in float32."""
    expected = torch.as_tensor(expected)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.fixture(autouse=True)
def as_torchaudio(monkeypatch):
    """Our resampler is another one; the recorded clips reached MuQ by torchaudio's."""

    def resample(audio, old_rate, new_rate):
        return audio if old_rate == new_rate else torch.stack([by_torchaudio(clip) for clip in audio])

    monkeypatch.setattr(fused, "resample", resample)


@pytest.mark.parametrize("clip", ["a", "b", "d"])
def test_a_clip_alone_is_the_originals(case, clip):
    _, models, recorded = case
    close(heard(models[True], clip)[0], recorded[f"{clip}__emb_{clip}"])


def test_a_batch_is_the_originals_where_no_token_reads_beyond_its_clip(case):
    """The last token of a shorter clip reads the window's silence, and ALARM-CA spreads it over the clip."""
    kind, models, recorded = case
    a, b, _ = heard(models[True], "a", "b", "c")
    close(b, recorded["batch__emb_b"])
    if kind != "alarm_ca":
        close(a[:-1], recorded["batch__emb_a"][:-1])


def test_by_their_own_lengths_a_clip_in_a_batch_is_the_clip_alone(case):
    _, models, _ = case
    for clip, vectors in zip("abc", heard(models[False], "a", "b", "c"), strict=True):
        close(vectors, heard(models[False], clip)[0])


@pytest.mark.parametrize("clip", ["a", "b", "d"])
def test_by_their_own_lengths_a_clip_alone_is_the_originals(case, clip):
    _, models, recorded = case
    close(heard(models[False], clip)[0], recorded[f"{clip}__emb_{clip}"])


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    """An LLM's folder without weights."""
    folder = tmp_path_factory.mktemp("llm")
    tokenizer = tiny_tokenizer("thinking")
    tokenizer.save_pretrained(folder)
    Qwen3Config(vocab_size=len(tokenizer), hidden_size=WIDTH).save_pretrained(folder)
    return str(folder)


def test_a_written_folder_contains_its_encoders_and_can_be_moved(alarm_configs, llm, tmp_path):
    source = released_folder("alarm_p", tmp_path / "source")
    write_released("alarm", source, tmp_path / "written", llm=llm, encoders=alarm_configs)
    folder = (tmp_path / "written").rename(tmp_path / "moved")
    config, tensors = open_model(str(folder), llm=llm)
    paths = {name: Path(knobs["path"]) for name, knobs in config.perception.encoders.items()}
    assert paths == {name: folder / "encoders" / name for name in NAMES}
    stored = load_file(source / "model.safetensors")
    for name, path in paths.items():
        own = {key.removeprefix(prefix_of(name)): t for key, t in stored.items() if key.startswith(prefix_of(name))}
        copied = load_file(path / "model.safetensors")
        assert copied.keys() == own.keys() and all(torch.equal(own[key], copied[key]) for key in own)
    named = json.loads((folder / "config.json").read_text())["model"]["perception"]["encoders"]
    assert {name: one["path"] for name, one in named.items()} == {name: PUBLISHED[name].source for name in NAMES}
    assert tensors.keys() == read_released("alarm", source, llm=llm).tensors.keys()


def test_the_fusions_depth_is_that_of_the_file(tmp_path):
    folder = released_folder("alarm_ca", tmp_path)
    state = load_file(folder / "model.safetensors")
    layer = "condition_modules.muq.0."
    state |= {name.replace(layer, layer.replace("0", "1")): t.clone() for name, t in state.items() if layer in name}
    save_file(state, folder / "model.safetensors")
    fusion = read_released("alarm", folder, llm="llm").config.perception.projector["fusion"]
    assert fusion["num_layers"] == {"w2vbert": 1, "muq": 2, "sslam": 1}


def test_published_encoders_are_named_where_none_are_written(tmp_path):
    config = read_released("alarm", released_folder("alarm_ca", tmp_path), llm="llm").config.perception
    assert [knobs["path"] for knobs in config.encoders.values()] == [PUBLISHED[name].source for name in NAMES]
    assert config.sampling_rate == 24_000 and not config.projector["original_masks"]


def changed(place, **values):
    """A section of ALARM's config as released, with other values."""
    original = json.loads((SOURCE / "alarm_ca" / "config.json").read_text())
    target = original[place][0] if isinstance(original[place], list) else original[place]
    target |= values
    return {place: original[place]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_explicit_audio_tokens": True}, "only models with learned markers"),
        (changed("audio_fusion_config", fusion_type="gated"), "unknown fusion 'gated'"),
        (changed("audio_adapter_configs", use_conformer=True), "'whisper' has conformer blocks"),
        (changed("audio_adapter_configs", adapter_name="mamba"), "unknown adapter 'mamba'"),
        (changed("audio_adapter_configs", encoder_name="beats"), "unknown encoder 'beats'"),
        (changed("audio_adapter_configs"), r"w2vbert reads \[0, 2, 3\]: 0 is what enters its first block"),
    ],
)
def test_what_is_not_implemented_is_refused(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        read_released("alarm", released_folder("alarm_ca", tmp_path, change), llm="llm")


SHARDS, SHARD_BYTES = 8, 96 << 20
LIMITED = """
import resource, sys
from pathlib import Path
from nemo_desta.sharing.released import read_released
from nemo_desta.sharing.weight_files import open_weights

source, target, spare = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (1024 * used + spare,) * 2)
read_released("alarm", source, llm="llm", encoder_folder=target)
try:
    dict(open_weights(source))
except (MemoryError, OSError, RuntimeError):
    print("read within the limit, and the whole model is larger")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_a_model_larger_than_memory_is_read_in_shards(tmp_path):
    """The limit is half of the model's size; one shard is an encoder's, the others are the LLM's."""
    source = released_folder("al_whisper", tmp_path / "source")
    places = dict.fromkeys(load_file(source / "model.safetensors"), "small.safetensors")
    (source / "model.safetensors").rename(source / "small.safetensors")
    for number in range(SHARDS):
        name = f"model.layers.{number}.large" if number else prefix_of("whisper") + "large"
        places[name] = f"{number}.safetensors"
        entry = {name: {"dtype": "F32", "shape": [SHARD_BYTES // 4], "data_offsets": [0, SHARD_BYTES]}}
        text = json.dumps(entry).encode()
        text += b" " * (-len(text) % 8)
        with (source / places[name]).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + SHARD_BYTES)
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    spare = str(SHARDS * SHARD_BYTES // 2)
    command = [sys.executable, "-c", LIMITED, source, tmp_path / "encoders", spare]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "the whole model is larger" in done.stdout, done.stderr[-2000:]
    assert (tmp_path / "encoders" / "whisper" / "model.safetensors").stat().st_size > SHARD_BYTES
