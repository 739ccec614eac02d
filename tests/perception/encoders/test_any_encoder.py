"""What holds for every encoder: audio of any length, batches, frozen weights, dtypes."""

import copy

import pytest
import torch

from nemo_desta.perception.encoders import AudioEncoder, FrozenEncoder

#: Seconds -> frames of Whisper, of BEATs and EAT, of MuQ, by the samples of their steps.
LENGTHS = {0.05: (3, 8, 2), 29.99: (1500, 188 * 8, 750), 30.0: (1500, 188 * 8, 750), 30.01: (1501, 188 * 8, 751)}
LENGTHS |= {31: (1550, 194 * 8, 775), 95: (4750, 594 * 8, 2375)}
HOPS = (320, 2560, 960)


@pytest.fixture
def noise(noise, encoder):
    """Seconds -> (S,) noise at the encoder's rate."""
    return lambda secs: noise(secs, encoder.sampling_rate)


@pytest.mark.parametrize("secs", LENGTHS)
def test_frames_cover_the_clip(encoder, noise, secs):
    clip = noise(secs)
    layers, lens = encoder(clip[None], torch.tensor([len(clip)]))
    expected = LENGTHS[secs][HOPS.index(encoder.frame_grid.hop)]
    assert lens.tolist() == [expected] == [encoder.num_frames(len(clip))]
    assert len(layers) == len(encoder.layer_ids)
    for layer in layers:
        assert layer.shape == (1, expected, encoder.hidden_size)
        assert layer.isfinite().all()


def test_clip_in_a_batch_equals_the_clip_alone(encoder, noise, batch):
    clips = [noise(secs) for secs in (0.05, 31.0, 3.217, 30.01)]
    together = encoder(*batch(*clips))
    for row, clip in enumerate(clips):
        alone = encoder(clip[None], torch.tensor([len(clip)]))
        num_frames = int(alone.lens[0])
        assert together.lens[row] == num_frames
        for in_batch, by_itself in zip(together.layers, alone.layers, strict=True):
            torch.testing.assert_close(in_batch[row, :num_frames], by_itself[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_samples", [0, 1, 399, 400])
def test_empty_and_short_audio_gives_one_step(encoder, num_samples):
    audio = torch.full((1, num_samples), 0.1)
    layers, lens = encoder(audio, torch.tensor([num_samples]))
    at_least = encoder.frame_grid.frames_per_step
    assert at_least <= lens[0] == layers[0].shape[1] <= 2 * at_least
    assert all(layer.isfinite().all() for layer in layers)


def test_empty_clip_beside_a_long_one(encoder, noise, batch):
    layers, lens = encoder(*batch(noise(31), torch.zeros(0)))
    assert lens[1] == encoder.frame_grid.frames_per_step
    assert layers[0][1, : lens[1]].isfinite().all()


@pytest.mark.parametrize("where", [0, 5.1199, 15.5, 29.9999, 30.0001, 30.9999])
def test_every_sample_is_heard(encoder, noise, where):
    clip = noise(31)
    click = clip.clone()
    place = int(where * encoder.sampling_rate)
    click[place] += 0.5
    lens = torch.tensor([len(clip)])
    before, after = encoder(clip[None], lens).layers[0][0], encoder(click[None], lens).layers[0][0]
    step = place // encoder.frame_grid.hop
    per_step = encoder.frame_grid.frames_per_step
    change = (after - before).abs().amax(-1).view(-1, per_step).amax(-1)
    assert change[step] > 1e-3, "the step that holds the click does not hear it"


def test_last_samples_beyond_the_last_whole_window_are_heard(encoder, noise):
    clip = noise(1.0)[: 400 + 160 * 20 + 150]
    click = clip.clone()
    click[-1] += 0.5
    lens = torch.tensor([len(clip)])
    assert (encoder(click[None], lens).layers[0] - encoder(clip[None], lens).layers[0]).abs().max() > 1e-4


def test_only_valid_chunks_are_encoded(encoder, noise, batch, monkeypatch):
    rows = []
    forward = encoder.model.forward
    monkeypatch.setattr(encoder.model, "forward", lambda x, *a, **k: (rows.append(len(x)), forward(x, *a, **k))[1])
    encoder(*batch(noise(61), noise(1), noise(1)))
    per_minute = 6 if encoder.frame_grid.overlap else 3
    assert rows == [per_minute + 2]


def test_training_mode_and_gradients_stay_off(encoder, noise):
    holder = torch.nn.ModuleDict({"encoder": encoder}).train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in holder.parameters())
    layers, _ = encoder(noise(1.0)[None].requires_grad_(), torch.tensor([encoder.sampling_rate]))
    assert not any(layer.requires_grad for layer in layers)


def test_autocast_does_not_change_the_numbers(encoder, noise):
    clip, lens = noise(1.0)[None], torch.tensor([encoder.sampling_rate])
    plain = encoder(clip, lens).layers
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = encoder(clip, lens).layers
    for a, b in zip(plain, cast, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert torch.equal(a, b)


def test_bfloat16_weights_give_bfloat16_layers_near_float32(encoder, noise):
    clip, lens = noise(1.0)[None], torch.tensor([encoder.sampling_rate])
    half = copy.deepcopy(encoder).to(torch.bfloat16)
    for exact, rounded in zip(encoder(clip, lens).layers, half(clip, lens).layers, strict=True):
        assert rounded.dtype == torch.bfloat16
        assert (rounded.float() - exact).norm() / exact.norm() < 0.05


def test_features_stay_float32_under_a_default_dtype(encoder, noise):
    clip, lens = noise(1.0)[None], torch.tensor([encoder.sampling_rate])
    expected = encoder(clip, lens).layers[0]
    fresh = copy.deepcopy(encoder)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = fresh(clip, lens).layers[0]
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


def test_length_beyond_the_audio_is_refused(encoder):
    with pytest.raises(ValueError, match="clip 1: audio_lens says 900 samples but audio holds 800"):
        encoder(torch.zeros(2, 800), torch.tensor([800, 900]))


def test_protocol(encoder):
    assert isinstance(encoder, FrozenEncoder) and isinstance(encoder, AudioEncoder)
    assert (encoder.sampling_rate, encoder.frame_rate) in ((16_000, 50.0), (24_000, 25.0))
    assert encoder.state_dict(), "weights are part of the module"
