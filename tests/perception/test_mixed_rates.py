"""Whisper, w2v-BERT, MuQ and EAT behind one window projector: four frame grids, two sampling rates."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nemo_desta.config import FeatureCacheConfig, PerceptionConfig
from nemo_desta.data.audio_io import to_clip
from nemo_desta.errors import ConfigError
from nemo_desta.perception.build import audio_rates, build_encoders, encoder_shapes
from nemo_desta.perception.dry_run import dry_run
from nemo_desta.perception.feature_cache import FeatureCache
from nemo_desta.perception.fused import FusedPerception
from nemo_desta.perception.projector import WindowProjector
from nemo_desta.testing.hf_encoders import tiny_hf_encoder
from nemo_desta.testing.perception import tiny_eat, tiny_muq, tiny_whisper
from nemo_desta.training.feature_precompute import padded

SECS = (1.3, 0.7, 0.02)
USED = [("whisper", "muq"), ("muq", "w2vbert"), ("whisper", "muq", "sslam"), ("whisper", "w2vbert", "muq", "sslam")]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> PerceptionConfig:
    folder = tmp_path_factory.mktemp("encoders")
    encoders = {
        "whisper": {"path": tiny_whisper(folder / "whisper", window_secs=1.0), "layer_ids": [1, 3]},
        "w2vbert": {"path": tiny_hf_encoder(folder / "w2vbert", "wav2vec2-bert"), "window_secs": 1.0},
        "muq": {"path": tiny_muq(folder / "muq"), "chunk_secs": 1.0},
        "sslam": {"name": "eat", "path": tiny_eat(folder / "eat"), "layer_ids": [1], "original_masks": True},
    }
    return PerceptionConfig(encoders=encoders)


@pytest.fixture(scope="module")
def encoders(config):
    return build_encoders(config)


@pytest.fixture(scope="module", params=USED, ids="-".join)
def perception(request, config, encoders) -> FusedPerception:
    used = {name: encoders[name] for name in request.param}
    torch.manual_seed(0)
    return FusedPerception(used, WindowProjector(used, 24), 24_000)


def clips(perception: FusedPerception) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise at 44.1 kHz as training reads it."""
    rng = np.random.default_rng(0)
    noise = [0.1 * rng.standard_normal((round(secs * 44_100), 1)) for secs in SECS]
    return padded([to_clip(one, 44_100, perception.audio_rates, "x") for one in noise], torch.device("cpu"))


def test_a_clip_in_a_batch_equals_the_clip_alone(perception):
    audio, lens = clips(perception)
    assert perception.audio_rates == (24_000, 16_000) and audio.shape[2] == 2
    vectors, counts = perception(audio, lens)
    for row, size in enumerate(lens.tolist()):
        alone, _ = perception(audio[row : row + 1, :size], lens[row : row + 1])
        assert alone.shape[1] == counts[row] == perception.num_tokens(size)
        torch.testing.assert_close(vectors[row, : counts[row]], alone[0], atol=1e-4, rtol=0)


def test_padding_is_not_read_and_every_encoder_is(perception):
    audio, lens = clips(perception)
    vectors, counts = perception(audio, lens)
    dirty = audio.clone()
    for row, size in enumerate(lens.tolist()):
        dirty[row, size:] = float("nan")
    assert torch.equal(perception(dirty, lens)[0], vectors)
    for column in range(2):
        other = audio.clone()
        other[0, :12_000, column] = 0
        changed = (perception(other, lens)[0][0] - vectors[0]).abs().amax(1)
        assert (changed[:3] > 1e-4).all() and int(counts[0]) == len(changed)


def test_features_from_the_cache_are_those_of_the_encoders(perception, tmp_path):
    audio, lens = clips(perception)
    expected = perception.encode(audio, lens)
    identities = {name: {"encoder": name} for name in perception.encoders}
    perception.feature_cache = FeatureCache(FeatureCacheConfig(folder=str(tmp_path)), identities, {})
    try:
        for _ in range(2):
            found = perception.encode(audio, lens)
            for name, (layers, counts) in expected.items():
                assert torch.equal(found[name].lens, counts)
                for layer, one in zip(layers, found[name].layers, strict=True):
                    assert all(torch.equal(a[:n], b[:n]) for a, b, n in zip(layer, one, counts, strict=True))
        count = 3 * len(perception.encoders)
        assert (perception.feature_cache.num_encoded, perception.feature_cache.num_hits) == (count, count)
    finally:
        perception.feature_cache = None


def test_shapes_without_weights_count_the_frames(config, encoders):
    shapes = encoder_shapes(config)
    for name, encoder in encoders.items():
        shape = shapes[name]
        assert (shape.hidden_size, shape.layer_ids) == (encoder.hidden_size, encoder.layer_ids)
        assert [shape.num_frames(n) for n in (0, 961, 50_000)] == [encoder.num_frames(n) for n in (0, 961, 50_000)]
    assert audio_rates(config) == audio_rates(config, encoders) == (24_000, 16_000)
    only = PerceptionConfig(encoders=config.encoders, use=["whisper", "sslam"])
    assert audio_rates(only) == 16_000 and audio_rates(replace(config, sampling_rate=16_000)) == 16_000
    assert audio_rates(replace(only, sampling_rate=48_000)) == (48_000, 16_000)
    with pytest.raises(ConfigError, match="sampling_rate is 0; it must be a rate in Hz"):
        audio_rates(replace(config, sampling_rate=0))


def test_a_dry_run_counts_the_flops_of_a_real_run(encoders):
    found = dry_run(encoders, WindowProjector(encoders, 24).eval(), SECS[0], 24_000).encoder_flops
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        for encoder in encoders.values():
            size = round(SECS[0] * encoder.sampling_rate)
            encoder(torch.zeros(1, size), torch.tensor([size]))
    assert found == counter.get_total_flops()
