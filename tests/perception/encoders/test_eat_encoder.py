"""Parity with the original, the default masks, chunks and checkpoints. "Relative": to the largest magnitude."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_desta.errors import ConfigError
from nemo_desta.perception.encoders import Eat, EatConfig, EatEncoder
from nemo_desta.perception.encoders.eat import FBANK_MEAN, FBANK_STD
from nemo_desta.perception.encoders.eat_model import positions

FIXTURE = Path(__file__).parents[2] / "fixtures" / "alarm_encoders" / "sslam"
CLIPS = ("a", "b", "c", "d")


def assert_near(found: torch.Tensor, expected: torch.Tensor, relative: float) -> None:
    assert found.shape == expected.shape
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    assert error < relative, f"largest difference is {error:.1e} of the largest magnitude"


def normalised(fbank: torch.Tensor) -> torch.Tensor:
    return (fbank - FBANK_MEAN) / (2 * FBANK_STD)


@pytest.fixture(scope="module")
def original() -> EatEncoder:
    return EatEncoder.from_pretrained(str(FIXTURE), original_masks=True, chunk_secs=2.56)


@pytest.fixture(scope="module")
def default() -> EatEncoder:
    return EatEncoder.from_pretrained(str(FIXTURE), chunk_secs=2.56)


@pytest.fixture(scope="module")
def clips(read_wav) -> dict[str, torch.Tensor]:
    return {name: read_wav(f"alarm_encoders/{name}.wav") for name in CLIPS}


def test_filter_bank_of_the_original(original, clips, batch, read_arrays):
    expected, longer = (read_arrays(f"alarm_encoders/sslam/{name}.npz") for name in ("single", "features_1024"))
    found = normalised(original.fbank(*batch(clips["a"], clips["b"])))
    frames = int(expected["n_frames"])
    assert_near(found[0, :frames], expected["fbank_normalised"][:frames], 1e-4)
    assert torch.equal(found[0, frames:], normalised(torch.zeros_like(found[0, frames:])))
    frames = int(longer["n_frames"])
    assert_near(found[1, :60], longer["fbank_normalised_first_60"], 1e-4)
    assert_near(found[1, frames - 20 : frames], longer["fbank_normalised_last_20_and_4_pad"][:20], 1e-4)
    torch.testing.assert_close(normalised(torch.zeros(1)), longer["pad_value"])


def test_layers_from_the_stored_filter_bank(original, read_arrays):
    expected = read_arrays("alarm_encoders/sslam/single.npz")
    fbank = expected["fbank_normalised"][None]
    with torch.no_grad():
        layers, short = original.model(fbank), original.model(fbank[:, : int(expected["unpadded_frames"])])
        assert_near(original.model.classify(layers[-1])[0], expected["logits"], 1e-5)
    assert len(layers) == 4
    for number in range(4):
        assert_near(layers[number][0], expected["hidden_with_cls"][number], 1e-5)
        assert_near(short[number][0], expected["hidden_unpadded_with_cls"][number], 1e-5)


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_in_alarms_windows(original, clips, name, read_arrays):
    expected = read_arrays("alarm_encoders/sslam/alarm_single.npz")
    size = int(expected[f"{name}__length"])
    layers, lens = original(clips[name][None], torch.tensor([len(clips[name])]))
    assert lens.tolist() == [size] == [original.num_frames(len(clips[name]))]
    for layer, hidden in zip(layers, expected[f"{name}__hidden"], strict=True):
        assert_near(layer[0], hidden[:size], 1e-4)


def test_a_padded_batch_in_alarms_windows(original, clips, batch, read_arrays):
    expected = read_arrays("alarm_encoders/sslam/alarm_batch.npz")
    layers, lens = original(*batch(*(clips[name] for name in "abc")))
    assert lens.tolist() == expected["length"].tolist()
    for layer, hidden in zip(layers, expected["hidden"], strict=True):
        for row, size in enumerate(lens.tolist()):
            assert_near(layer[row, :size], hidden[row, :size], 1e-4)


def test_positions_are_those_of_the_checkpoint():
    table = load_file(FIXTURE / "model.safetensors")["model.fixed_positional_encoder.positions"][0]
    torch.testing.assert_close(positions(40, 16), table, atol=2e-6, rtol=0)
    torch.testing.assert_close(positions(3, 16), table[:24], atol=2e-6, rtol=0)


def test_every_chunk_equals_the_model_on_it_alone(default, clips):
    clip = clips["b"]
    lens = torch.tensor([len(clip)])
    layers, token_lens = default(clip[None], lens)
    steps = -(-len(clip) // 2560)
    assert token_lens.tolist() == [8 * steps] == [default.num_frames(len(clip))] and 16 < steps <= 32
    fbank = default.fbank(clip[None], lens)
    fbank = normalised(torch.nn.functional.pad(fbank, (0, 0, 0, 16 * steps - fbank.shape[1])))
    with torch.no_grad():
        halves = [default.model(half) for half in fbank.tensor_split([steps // 2 * 16], dim=1)]
    for number, layer in enumerate(layers):
        assert_near(layer, torch.cat([half[number][:, 1:] for half in halves], dim=1), 1e-5)


def test_default_equals_the_original_on_a_whole_window(default, original, clips):
    clip = clips["b"][:40_960]
    lens = torch.tensor([len(clip)])
    for layer, expected in zip(default(clip[None], lens).layers, original(clip[None], lens).layers, strict=True):
        assert layer.shape[1] == 128
        assert_near(layer, expected, 1e-6)


def test_clips_do_not_depend_on_their_batch(original, default, clips, batch):
    for encoder in (original, default):
        together = encoder(*batch(*clips.values()))
        for row, clip in enumerate(clips.values()):
            alone = encoder(clip[None], torch.tensor([len(clip)]))
            for layer, expected in zip(together.layers, alone.layers, strict=True):
                assert_near(layer[row, : together.lens[row]], expected[0], 1e-5)


def test_size_and_names_of_the_published_model():
    with torch.device("meta"):
        model = Eat(EatConfig(model_variant="finetune"))
    table = 768 * 8 * 768  # positions, computed here
    assert sum(parameter.numel() for parameter in model.parameters()) + table == 90_379_535
    assert len(model.state_dict()) + 1 == 154
    stored = {name.removeprefix("model.") for name in load_file(FIXTURE / "model.safetensors")}
    tiny = EatEncoder.from_pretrained(str(FIXTURE))
    assert stored == {*tiny.model.state_dict(), "fixed_positional_encoder.positions"}


def test_a_pre_trained_checkpoint_has_no_head(tmp_path, default, clips):
    config = json.loads((FIXTURE / "config.json").read_text()) | {"model_variant": "pretrain"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(FIXTURE / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if "head" not in name and "fc_norm" not in name},
        tmp_path / "model.safetensors",
    )
    encoder = EatEncoder.from_pretrained(str(tmp_path), chunk_secs=2.56)
    assert encoder.model.head is None
    clip, lens = clips["a"][None], torch.tensor([len(clips["a"])])
    assert torch.equal(encoder(clip, lens).layers[-1], default(clip, lens).layers[-1])


def test_blocks_after_the_last_chosen_one_are_not_built(default, clips):
    clip, lens = clips["a"][None], torch.tensor([len(clips["a"])])
    short = EatEncoder.from_pretrained(str(FIXTURE), layer_ids=(2,), chunk_secs=2.56)
    assert short.num_layers == EatEncoder.shape(str(FIXTURE)).num_layers == 4
    assert not any("blocks.2." in name or "head" in name for name in short.state_dict())
    assert torch.equal(short(clip, lens).layers[0], default(clip, lens).layers[1])


@pytest.mark.parametrize("chunk_secs", [0.1, 31])
def test_chunk_secs_out_of_range(chunk_secs):
    with pytest.raises(ValueError, match="between 0.16 .* and 30"):
        EatEncoder.from_pretrained(str(FIXTURE), chunk_secs=chunk_secs)


def test_config_that_is_not_implemented():
    with pytest.raises(ConfigError, match="'layer_norm_first' is True; only False is implemented"):
        EatConfig.from_dict({"embed_dim": 8, "depth": 1, "num_heads": 1, "layer_norm_first": True})
    with pytest.raises(ConfigError, match="no config of EAT or SSLAM: it has no 'depth'"):
        EatConfig.from_dict({"model_type": "whisper"})
