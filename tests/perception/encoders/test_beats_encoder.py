"""Parity with the original, the default masks, chunks and checkpoints. "Relative": to the largest magnitude."""

from pathlib import Path

import pytest
import torch

from nemo_desta.errors import ConfigError
from nemo_desta.perception.encoders import Beats, BeatsConfig, BeatsEncoder
from nemo_desta.perception.encoders.beats_model import relative_buckets

FIXTURE = Path(__file__).parents[2] / "fixtures" / "beats"
TINY = FIXTURE / "beats_tiny.pt"
FINETUNED = FIXTURE / "beats_tiny_finetuned.pt"


def assert_near(found: torch.Tensor, expected: torch.Tensor, relative: float) -> None:
    assert found.shape == expected.shape
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    assert error < relative, f"largest difference is {error:.1e} of the largest magnitude"


@pytest.fixture(scope="module")
def original() -> BeatsEncoder:
    return BeatsEncoder.from_checkpoint(TINY, original_masks=True)


@pytest.fixture(scope="module")
def padded(read_wav) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = read_wav("beats/a.wav"), read_wav("beats/b.wav")
    return torch.stack([a, torch.nn.functional.pad(b, (0, len(a) - len(b)))]), torch.tensor([len(a), len(b)])


def test_layers_from_the_stored_filter_bank(original, read_arrays):
    expected = read_arrays("beats/batch_padded.npz")
    inner = {}
    modules = {"tokens_ln": original.model.layer_norm, "encoder_in": original.model.encoder.layer_norm}
    hooks = [
        module.register_forward_hook(lambda _m, _a, output, name=name: inner.update({name: output}))
        for name, module in modules.items()
    ]
    token_lens = (~expected["token_padding_mask"]).sum(1)
    with torch.no_grad():
        layers = original.model(expected["fbank_norm"], token_lens)
    for hook in hooks:
        hook.remove()
    for name, tensor in inner.items():
        assert_near(tensor, expected[name], 1e-5)
    assert len(layers) == 3
    for number, layer in enumerate(layers):
        assert_near(layer, expected[f"layer{number}_out"], 1e-5)  # padded tokens, too


def test_padded_batch_from_the_waveform(original, padded, read_arrays):
    expected = read_arrays("beats/batch_padded.npz")
    assert_near(original.fbank(*padded), expected["fbank_norm"], 1e-4)
    layers, lens = original(*padded)
    assert lens.tolist() == (~expected["token_padding_mask"]).sum(1).tolist() == [192, 119]
    for number, layer in enumerate(layers):
        assert_near(layer, expected[f"layer{number}_out"], 1e-4)


def test_clip_alone_from_the_waveform(original, read_wav, read_arrays):
    clip, expected = read_wav("beats/b.wav"), read_arrays("beats/single_b_nomask.npz")
    layers, lens = original(clip[None], torch.tensor([len(clip)]))
    assert lens.tolist() == [112] == [original.num_frames(len(clip))]
    for number, layer in enumerate(layers):
        assert_near(layer, expected[f"layer{number}_out"], 1e-4)


def test_eleven_seconds_from_the_waveform(original, read_wav, read_arrays):
    clip = read_wav("beats/long.wav")
    layers, lens = original(clip[None], torch.tensor([len(clip)]))
    assert lens.tolist() == [544]
    assert_near(layers[-1], read_arrays("beats/single_long.npz")["final"], 1e-4)


def test_too_short_for_the_original(original):
    with pytest.raises(ValueError, match="2799 samples fill no patch; the original needs 2800"):
        original(torch.zeros(1, 2799), torch.tensor([2799]))


def test_class_probabilities(padded, read_wav, read_arrays):
    expected = read_arrays("beats/finetuned.npz")
    encoder = BeatsEncoder.from_checkpoint(FINETUNED, original_masks=True)
    torch.testing.assert_close(encoder.classify(*padded), expected["probs_batch_padded"], atol=1e-5, rtol=0)
    clip = read_wav("beats/long.wav")
    found = encoder.classify(clip[None], torch.tensor([len(clip)]))
    torch.testing.assert_close(found, expected["probs_single_long"], atol=1e-5, rtol=0)
    assert encoder.label_dict[6] == "/m/dev006"


@pytest.mark.parametrize(("path", "layer_ids"), [(TINY, None), (FINETUNED, (1,))])
def test_classify_without_predictor(path, layer_ids, padded):
    with pytest.raises(ValueError, match="fine-tuned BEATs checkpoint and its last block"):
        BeatsEncoder.from_checkpoint(path, layer_ids).classify(*padded)


@pytest.mark.parametrize("pair", [(320, 800), (64, 100), (320, 1280)])
def test_relative_buckets(pair, read_arrays):
    arrays = read_arrays("beats/rel_pos.npz")
    assert torch.equal(relative_buckets(arrays["distance"], *pair), arrays[f"bucket_{pair[0]}_{pair[1]}"])


def test_position_bias(original, read_arrays):
    bias = original.model.encoder.position_bias(24)
    torch.testing.assert_close(bias, read_arrays("beats/rel_pos.npz")["bias_24x24"], atol=0, rtol=0)


def test_default_masks_see_the_clip_and_nothing_else(padded, read_arrays):
    encoder = BeatsEncoder.from_checkpoint(TINY)
    audio, lens = padded
    fbank = encoder.fbank(audio, lens)
    expected = read_arrays("beats/batch_padded.npz")["fbank_norm"]
    torch.testing.assert_close(fbank[1, :235], expected[1, :235], atol=2e-4, rtol=0)
    assert (fbank[1, 235:] == 0).all()
    _, token_lens = encoder(audio, lens)
    assert token_lens.tolist() == [25 * 8, 15 * 8]  # the last patch is completed, where the original drops it


def test_default_equals_the_original_on_whole_patches(original, read_wav):
    clip = read_wav("beats/a.wav")[: 400 + 160 * (16 * 20 - 1)]
    lens = torch.tensor([len(clip)])
    default = BeatsEncoder.from_checkpoint(TINY)(clip[None], lens)
    theirs = original(clip[None], lens)
    assert default.lens.tolist() == theirs.lens.tolist() == [160]
    for a, b in zip(default.layers, theirs.layers, strict=True):
        assert_near(a, b, 1e-6)


def test_chunks_equal_the_model_on_each_stretch(read_wav):
    clip = read_wav("beats/long.wav")  # 69 steps
    lens = torch.tensor([len(clip)])
    encoder = BeatsEncoder.from_checkpoint(TINY, chunk_secs=4.0)  # up to 25 steps: 3 chunks of 23
    layers, token_lens = encoder(clip[None], lens)
    assert token_lens.tolist() == [69 * 8]
    fbank = torch.nn.functional.pad(encoder.fbank(clip[None], lens), (0, 0, 0, 6))  # 1098 frames -> 69 patches
    with torch.no_grad():
        expected = torch.cat([encoder.model(piece)[-1] for piece in fbank.split(23 * 16, dim=1)], dim=1)
    last_patch = 8  # holds one frame more than .fbank: the last window, completed with silence
    assert_near(layers[-1][:, : 46 * 8], expected[:, : 46 * 8], 1e-5)
    assert not torch.equal(layers[-1][:, -last_patch:], expected[:, -last_patch:])


@pytest.mark.parametrize("chunk_secs", [0.1, 31])
def test_chunk_secs_out_of_range(chunk_secs):
    with pytest.raises(ValueError, match="between 0.16 .* and 30"):
        BeatsEncoder.from_checkpoint(TINY, chunk_secs=chunk_secs)


def test_blocks_after_the_last_chosen_one_are_not_built(padded):
    short = BeatsEncoder.from_checkpoint(TINY, layer_ids=(2,))
    assert short.num_layers == 3
    assert not any("layers.2." in name for name in short.state_dict())
    whole = BeatsEncoder.from_checkpoint(TINY, layer_ids=(3, 2))
    assert torch.equal(short(*padded).layers[0], whole(*padded).layers[1])


def test_trained_model_is_saved_in_the_public_form(tmp_path, padded):
    config = BeatsConfig(
        encoder_layers=2, encoder_embed_dim=32, encoder_ffn_embed_dim=64, encoder_attention_heads=4, embed_dim=16
    )
    torch.manual_seed(0)
    model = Beats(config).train()
    fbank = torch.randn(2, 64, 128)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(fbank, torch.tensor([32, 24]))[-1].square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    model.save_checkpoint(tmp_path / "beats.pt")

    checkpoint = torch.load(tmp_path / "beats.pt", weights_only=True)
    reference = torch.load(TINY, weights_only=True)
    assert checkpoint["cfg"].keys() == reference["cfg"].keys()
    assert checkpoint["model"].keys() == {name for name in reference["model"] if ".layers.2." not in name}
    encoder = BeatsEncoder.from_checkpoint(tmp_path / "beats.pt")
    with torch.no_grad():
        for a, b in zip(encoder.model(fbank), model.eval()(fbank), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("form", ["newer parametrisation", "plain weight"])
def test_other_names_of_the_positional_convolution(form, tmp_path, padded, original):
    checkpoint = torch.load(TINY, weights_only=True)
    conv, state = "encoder.pos_conv.0.", checkpoint["model"]
    g, v = state.pop(conv + "weight_g"), state.pop(conv + "weight_v")
    if form == "plain weight":
        state[conv + "weight"] = g * v / v.norm(dim=(0, 1), keepdim=True)
    else:
        state |= {conv + "parametrizations.weight.original0": g, conv + "parametrizations.weight.original1": v}
    torch.save(checkpoint, tmp_path / "beats.pt")
    encoder = BeatsEncoder.from_checkpoint(tmp_path / "beats.pt", original_masks=True)
    assert_near(encoder(*padded).layers[-1], original(*padded).layers[-1], 1e-5)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no BEATs checkpoint at .*nemo_desta.perception.download"):
        BeatsEncoder.from_checkpoint(tmp_path / "beats.pt")


def test_file_of_another_kind(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"expected the keys 'cfg' and 'model', found \['state_dict'\]"):
        BeatsEncoder.from_checkpoint(tmp_path / "other.pt")


def test_missing_tensor(tmp_path):
    checkpoint = torch.load(TINY, weights_only=True)
    del checkpoint["model"]["encoder.layers.1.fc1.bias"]
    torch.save(checkpoint, tmp_path / "beats.pt")
    with pytest.raises(ValueError, match=r"1 of \d+ BEATs tensors are missing, first 'encoder.layers.1.fc1.bias'"):
        BeatsEncoder.from_checkpoint(tmp_path / "beats.pt")


def test_config_that_is_not_implemented():
    with pytest.raises(ConfigError, match="'layer_norm_first' is True; only False is implemented"):
        Beats({"layer_norm_first": True})
    with pytest.raises(ConfigError, match="unknown BEATs cfg key 'encoder_layer'. Did you mean 'encoder_layers'"):
        Beats({"encoder_layer": 3})
