"""The default projector: one vector per window from every encoder, whatever the batch looks like."""

import pytest
import torch

from nemo_desta.errors import ConfigError
from nemo_desta.ops import num_windows
from nemo_desta.perception.projector import WindowProjector, build_projector
from tests.perception.projector.toys import (
    RATE,
    SAMPLES,
    randomise,
    run,
    toy_encoders,
    toy_features,
)


@pytest.mark.parametrize("rate", [6.25, 5, "25/3", 1.7])
def test_the_length_is_the_rate_times_the_duration(rate):
    projector = WindowProjector(toy_encoders(), 10, tokens_per_second=rate, num_queries=3, markers=True)
    assert projector.num_tokens(40_003, RATE) == num_windows(40_003, RATE, rate) + 2


def test_a_fresh_projector_is_the_mlp_of_window_means():
    encoders = {"whisper": toy_encoders()["whisper"]}
    projector = WindowProjector(encoders, 10, tokens_per_second=12.5, output_norm=False)
    features = toy_features(encoders, [16_000])
    frames = torch.nn.functional.layer_norm(sum(features["whisper"].layers)[0, :50] / 3, (12,))
    means = torch.stack([frames[w * 4 : w * 4 + 4].mean(0) for w in range(12)] + [frames[48:].mean(0)])
    vectors, lens = projector(features, audio_lens=torch.tensor([16_000]), sampling_rate=RATE)
    assert lens.tolist() == [13]
    torch.testing.assert_close(vectors[0], projector.mlp(means), atol=1e-6, rtol=1e-5)


def test_encoders_reach_their_own_share_of_the_mlp():
    encoders = toy_encoders()
    projector = WindowProjector(encoders, 10)
    features = toy_features(encoders, [16_000])
    before, _ = projector(features, audio_lens=torch.tensor([16_000]), sampling_rate=RATE)
    with torch.no_grad():
        projector.mlp[0].weight[:, 12:] = 0  # the columns behind Whisper's 12 are those of BEATs
    deaf, _ = projector(features, audio_lens=torch.tensor([16_000]), sampling_rate=RATE)
    other = toy_features(encoders, [16_000], first_clip=5)
    changed, _ = projector(
        {"whisper": features["whisper"], "beats": other["beats"]},
        audio_lens=torch.tensor([16_000]),
        sampling_rate=RATE,
    )
    assert not torch.allclose(before, deaf)
    assert torch.equal(deaf, changed)


def test_the_window_of_a_sound_is_the_one_at_its_time():
    encoders = toy_encoders()
    projector = randomise(WindowProjector(encoders, 10))
    features = toy_features(encoders, [48_000])
    quiet, _ = projector(features, audio_lens=torch.tensor([48_000]), sampling_rate=RATE)
    for name, frames in {"whisper": slice(80, 88), "beats": slice(80, 88)}.items():  # 1.6 s to 1.76 s in both
        features[name].layers[0][0, frames] += 1
        loud, _ = projector(features, audio_lens=torch.tensor([48_000]), sampling_rate=RATE)
        assert [w for w in range(19) if not torch.equal(quiet[0, w], loud[0, w])] == [10]
        features[name].layers[0][0, frames] -= 1
        quiet, _ = projector(features, audio_lens=torch.tensor([48_000]), sampling_rate=RATE)


def test_output_level_is_the_given_rms():
    encoders = toy_encoders()
    projector = WindowProjector(encoders, 64, output_rms=0.03)
    vectors, lens = run(projector, encoders, [16_000])
    torch.testing.assert_close(vectors[0].square().mean(-1).sqrt(), torch.full((7,), 0.03), rtol=1e-3, atol=0)


def test_markers_surround_each_clip():
    encoders = toy_encoders()
    projector = WindowProjector(encoders, 10, markers=True)
    vectors, lens = run(projector, encoders, SAMPLES)
    for row, n in enumerate(lens.tolist()):
        assert torch.equal(vectors[row, 0], projector.markers.start)
        assert torch.equal(vectors[row, n - 1], projector.markers.end)


def test_bfloat16_frames_meet_float32_weights():
    encoders = toy_encoders()
    projector = randomise(WindowProjector(encoders, 10, output_norm=False))
    full, lens = run(projector, encoders, SAMPLES)
    half, _ = run(projector, encoders, SAMPLES, dtype=torch.bfloat16)
    valid = torch.arange(full.shape[1]) < lens[:, None]
    assert half.dtype == torch.float32
    assert (half - full)[valid].square().mean().sqrt() < 0.02 * full[valid].square().mean().sqrt()


def test_wrong_names_and_knobs_are_named_with_the_nearest_known():
    encoders = toy_encoders()
    with pytest.raises(ConfigError, match="'windw'.*Did you mean 'window'"):
        build_projector("windw", encoders, 10)
    with pytest.raises(ConfigError, match="token_per_second.*Did you mean 'tokens_per_second'"):
        build_projector("window", encoders, 10, token_per_second=5)
    with pytest.raises(ValueError, match="'mean'"):
        build_projector("window", encoders, 10, mode="mean")
    with pytest.raises(ValueError, match="at least one encoder"):
        build_projector("window", {}, 10)


def test_calibration_standardises_every_channel_of_the_clips_own_frames():
    encoders = toy_encoders()
    projector = WindowProjector(encoders, 10)
    batches = [toy_features(encoders, [48_000, 16_000]), toy_features(encoders, [31_000], first_clip=7)]
    for features in batches:
        for output in features.values():
            for layer in output.layers:
                layer[..., 1] += 5  # a channel that is large in every clip
                layer[..., 2] *= 3
    padded = [_poisoned(features) for features in batches]
    projector.calibrate(iter(padded))
    for name, pool in projector.pools.items():
        frames = []
        for features in batches:
            out = features[name]
            mixed = torch.nn.functional.layer_norm(sum(out.layers) / len(out.layers), out.layers[0].shape[-1:])
            frames += [one[: int(length)] for one, length in zip(mixed, out.lens, strict=True)]
        normed = torch.cat(frames) * pool.norm_weight + pool.norm_bias
        torch.testing.assert_close(normed.mean(0), torch.zeros(normed.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(normed.var(0, correction=0), torch.ones(normed.shape[1]), atol=1e-4, rtol=0)


def _poisoned(features):
    """The features with large values beyond each clip's frames."""
    found = {}
    for name, out in features.items():
        beyond = torch.arange(out.layers[0].shape[1]) >= out.lens[:, None]
        layers = tuple(layer.masked_fill(beyond[..., None], 1e4) for layer in out.layers)
        found[name] = out._replace(layers=layers)
    return found


def test_calibration_needs_a_clip():
    with pytest.raises(ValueError, match="no clip to calibrate on"):
        WindowProjector(toy_encoders(), 10).calibrate(iter([]))
