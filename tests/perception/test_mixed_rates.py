"""Whisper, MuQ and EAT behind one window projector: three frame grids, two sampling rates."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nemo_desta.config import FeatureCacheConfig, PerceptionConfig
from nemo_desta.perception.build import build_encoders, encoder_shapes
from nemo_desta.perception.dry_run import dry_run
from nemo_desta.perception.feature_cache import FeatureCache
from nemo_desta.perception.fused import FusedPerception
from nemo_desta.perception.projector import WindowProjector
from nemo_desta.testing.perception import tiny_eat, tiny_muq, tiny_whisper

SECS = (1.3, 0.7, 0.02)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> PerceptionConfig:
    folder = tmp_path_factory.mktemp("encoders")
    encoders = {
        "whisper": {"path": tiny_whisper(folder / "whisper", window_secs=1.0), "layer_ids": [1, 3]},
        "muq": {"path": tiny_muq(folder / "muq"), "chunk_secs": 1.0},
        "sslam": {"name": "eat", "path": tiny_eat(folder / "eat"), "layer_ids": [1], "original_masks": True},
    }
    return PerceptionConfig(encoders=encoders)


@pytest.fixture(scope="module", params=[16_000, 24_000])
def perception(request, config) -> FusedPerception:
    encoders = build_encoders(config)
    torch.manual_seed(0)
    return FusedPerception(encoders, WindowProjector(encoders, 24), request.param)


def clips(rate: int) -> tuple[torch.Tensor, torch.Tensor]:
    lens = torch.tensor([round(secs * rate) for secs in SECS])
    return 0.1 * torch.randn(len(SECS), int(lens.max()), generator=torch.Generator().manual_seed(0)), lens


def test_a_clip_in_a_batch_equals_the_clip_alone(perception):
    audio, lens = clips(perception.sampling_rate)
    vectors, counts = perception(audio, lens)
    for row, size in enumerate(lens.tolist()):
        alone, _ = perception(audio[row : row + 1, :size], lens[row : row + 1])
        assert alone.shape[1] == counts[row] == perception.num_tokens(size)
        # From 16 kHz MuQ's bands above 8 kHz are empty: their decibels show the resampler's rounding of 6e-8.
        atol = 1e-3 if perception.sampling_rate == 16_000 else 1e-4
        torch.testing.assert_close(vectors[row, : counts[row]], alone[0], atol=atol, rtol=0)


def test_features_from_the_cache_are_those_of_the_encoders(perception, tmp_path):
    audio, lens = clips(perception.sampling_rate)
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
        assert (perception.feature_cache.num_encoded, perception.feature_cache.num_hits) == (9, 9)
    finally:
        perception.feature_cache = None


def test_shapes_without_weights_count_the_frames(perception, config):
    shapes = encoder_shapes(config)
    for name, encoder in perception.encoders.items():
        shape = shapes[name]
        assert (shape.hidden_size, shape.layer_ids) == (encoder.hidden_size, encoder.layer_ids)
        assert [shape.num_frames(n) for n in (0, 961, 50_000)] == [encoder.num_frames(n) for n in (0, 961, 50_000)]


def test_a_dry_run_counts_the_flops_of_a_real_run(perception):
    rate = perception.sampling_rate
    found = dry_run(dict(perception.encoders), perception.projector.eval(), SECS[0], rate).encoder_flops
    audio = {24_000: torch.zeros(1, round(SECS[0] * 24_000)), 16_000: torch.zeros(1, round(SECS[0] * 16_000))}
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        for encoder in perception.encoders.values():
            clip = audio[encoder.sampling_rate]
            encoder(clip, torch.tensor([clip.shape[1]]))
    assert found == counter.get_total_flops()
