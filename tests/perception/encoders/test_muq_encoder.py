"""Parity with the original, the default masks, chunks and checkpoints. "Relative": to the largest magnitude."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_desta.errors import ConfigError
from nemo_desta.perception.encoders import Muq, MuqConfig, MuqEncoder

FIXTURE = Path(__file__).parents[2] / "fixtures" / "alarm_encoders" / "muq"
CLIPS = ("a", "b", "c", "d")
UNUSED = ("cls_token", "linear.", "rvq.", "conformer.pos_conv_embed.", "conformer.embed_positions.")


def assert_near(found: torch.Tensor, expected: torch.Tensor, relative: float) -> None:
    assert found.shape == expected.shape
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    assert error < relative, f"largest difference is {error:.1e} of the largest magnitude"


def by_torchaudio(clip: torch.Tensor) -> torch.Tensor:
    """torchaudio's Resample from 16 to 24 kHz: a sinc of 6 zero crossings under a Hann window, roll-off 0.99."""
    old, new, crossings = 2, 3, 6
    cutoff = min(old, new) * 0.99
    reach = math.ceil(crossings * old / cutoff)
    places = torch.arange(-reach, reach + old, dtype=torch.float64) / old
    phases = -torch.arange(new, dtype=torch.float64)[:, None] / new
    moments = ((places + phases) * cutoff).clamp(-crossings, crossings)
    kernel = torch.sinc(moments) * (moments * math.pi / crossings / 2).cos().square() * cutoff / old
    padded = torch.nn.functional.pad(clip, (reach, reach + old))
    filtered = torch.nn.functional.conv1d(padded[None, None], kernel.float()[:, None], stride=old)
    return filtered[0].T.flatten()[: math.ceil(len(clip) * new / old)]


@pytest.fixture(scope="module")
def original() -> MuqEncoder:
    return MuqEncoder.from_pretrained(str(FIXTURE), original_masks=True, chunk_secs=2.0)


@pytest.fixture(scope="module")
def default() -> MuqEncoder:
    return MuqEncoder.from_pretrained(str(FIXTURE), chunk_secs=2.0)


@pytest.fixture(scope="module")
def single(read_arrays) -> dict[str, torch.Tensor]:
    return read_arrays("alarm_encoders/muq/single_nomask.npz")


@pytest.fixture(scope="module")
def clips(read_wav, single) -> dict[str, torch.Tensor]:
    """At 24 kHz, as ALARM resamples them."""
    found = {name: by_torchaudio(read_wav(f"alarm_encoders/{name}.wav")) for name in CLIPS}
    torch.testing.assert_close(found["a"], single["a_24k"], atol=1e-6, rtol=0)
    return found


def test_mel_of_the_original(original, single):
    mel = original.mel(single["a_24k"][None])
    config = original.model.config
    expected = (single["mel_db"] - config.melspec_2048_mean) / config.melspec_2048_std
    assert_near(mel[0].T, expected, 1e-4)
    assert_near(mel[0, :8].T, single["mel_normalised_first_frames"], 1e-4)


@pytest.mark.parametrize(("start", "relative"), [("mel", 1e-5), ("waveform", 1e-4)])
def test_layers_of_a_clip_without_padding(original, single, start, relative):
    config = original.model.config
    stored = ((single["mel_db"] - config.melspec_2048_mean) / config.melspec_2048_std).T[None]
    mel = stored if start == "mel" else original.mel(single["a_24k"][None])
    with torch.no_grad():
        assert_near(original.model.conv(mel, None)[0], single["conv"], relative)
        layers = original.model(mel)
    assert len(layers) == len(single["hidden"]) - 1 == 3
    for layer, expected in zip(layers, single["hidden"][1:], strict=True):  # the last one after the final norm
        assert_near(layer[0], expected, relative)


def test_layers_of_a_padded_clip(original, single, read_arrays):
    expected = read_arrays("alarm_encoders/muq/single_mask.npz")
    clip, samples = single["a_24k"], int(expected["padded_samples_24k"])
    mel = original.mel(torch.nn.functional.pad(clip, (0, samples - len(clip)))[None])
    with torch.no_grad():
        layers = original.model(mel, torch.tensor([math.ceil(len(clip) / 960)]), alone=False)
    for layer, hidden in zip(layers, expected["hidden"][1:], strict=True):
        assert_near(layer[0], hidden, 1e-4)


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_in_alarms_windows(original, clips, name, read_arrays):
    expected = read_arrays("alarm_encoders/muq/alarm_single.npz")
    size = int(expected[f"{name}__length"])
    layers, lens = original(clips[name][None], torch.tensor([len(clips[name])]))
    assert lens.tolist() == [max(1, size)] == [original.num_frames(len(clips[name]))]
    for layer, hidden in zip(layers, expected[f"{name}__hidden"][1:], strict=True):
        assert_near(layer[0], hidden[: max(1, size)], 1e-4)


def test_a_padded_batch_in_alarms_windows(original, clips, batch, read_arrays):
    expected = read_arrays("alarm_encoders/muq/alarm_batch.npz")
    layers, lens = original(*batch(*(clips[name] for name in "abc")))
    assert lens.tolist() == expected["length"].clamp(min=1).tolist()
    for layer, hidden in zip(layers, expected["hidden"][1:], strict=True):
        for row, size in enumerate(lens.tolist()):
            assert_near(layer[row, :size], hidden[row, :size], 1e-4)


def test_every_chunk_equals_the_original_on_it_alone(default, clips):
    clip = clips["b"]
    layers, lens = default(clip[None], torch.tensor([len(clip)]))
    steps = math.ceil(len(clip) / 960)
    assert lens.tolist() == [steps] == [default.num_frames(len(clip))] and 50 < steps <= 100
    whole = torch.nn.functional.pad(clip, (0, steps * 960 - len(clip)))
    with torch.no_grad():
        halves = [default.model(default.mel(half[None])) for half in whole.tensor_split([steps // 2 * 960])]
    for number, layer in enumerate(layers):
        assert_near(layer[0], torch.cat([half[number][0] for half in halves]), 1e-5)


def test_clips_do_not_depend_on_their_batch(original, default, clips, batch):
    for encoder in (original, default):
        together = encoder(*batch(*clips.values()))
        for row, clip in enumerate(clips.values()):
            alone = encoder(clip[None], torch.tensor([len(clip)]))
            for layer, expected in zip(together.layers, alone.layers, strict=True):
                assert_near(layer[row, : together.lens[row]], expected[0], 1e-5)


def test_size_and_names_of_the_published_model():
    with torch.device("meta"):
        model = Muq(MuqConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 316_343_296
    stored = {name.removeprefix("model.") for name in load_file(FIXTURE / "model.safetensors")}
    tiny = MuqEncoder.from_pretrained(str(FIXTURE))
    assert {name for name in stored if not name.startswith(UNUSED)} == set(tiny.model.state_dict())


def test_blocks_after_the_last_chosen_one_are_not_built(default, clips):
    clip, lens = clips["a"][None], torch.tensor([len(clips["a"])])
    short = MuqEncoder.from_pretrained(str(FIXTURE), layer_ids=(2,))
    assert short.num_layers == MuqEncoder.shape(str(FIXTURE)).num_layers == 3
    assert not any("layers.2." in name or "conformer.layer_norm" in name for name in short.state_dict())
    assert_near(short(clip, lens).layers[0], default(clip, lens).layers[1], 1e-6)


def test_too_short_to_be_mirrored(original):
    with pytest.raises(ValueError, match="needs 1025 samples of a clip, found 1024"):
        original.mel(torch.zeros(1, 1024))


@pytest.mark.parametrize("chunk_secs", [0.04, 31])
def test_chunk_secs_out_of_range(chunk_secs):
    with pytest.raises(ValueError, match="between 0.08 .* and 30"):
        MuqEncoder.from_pretrained(str(FIXTURE), chunk_secs=chunk_secs)


def test_config_that_is_not_implemented():
    config = json.loads((FIXTURE / "config.json").read_text())
    with pytest.raises(ConfigError, match="'label_rate' is 50; only 25 is implemented"):
        MuqConfig.from_dict(config | {"label_rate": 50})
    with pytest.raises(ConfigError, match="'position_embeddings_type' is 'relative'; only 'rotary'"):
        MuqConfig.from_dict(config | {"w2v2_config": {"position_embeddings_type": "relative"}})
    with pytest.raises(ConfigError, match="no config of MuQ: it has no 'conv_dim'"):
        MuqConfig.from_dict({"model_type": "whisper"})


def test_missing_files_and_tensors(tmp_path):
    for source in (str(tmp_path), "/no/such/folder/at/all"):
        with pytest.raises(FileNotFoundError, match="no config.json there"):
            MuqEncoder.from_pretrained(source)
    shutil.copy(FIXTURE / "config.json", tmp_path)
    tensors = load_file(FIXTURE / "model.safetensors")
    del tensors["model.conv.linear.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="1 of .* tensors are not in the checkpoint, first 'conv.linear.bias'"):
        MuqEncoder.from_pretrained(str(tmp_path))
