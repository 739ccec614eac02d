"""The linear probe: what its features hold, and that it separates what a spectrum separates."""

import numpy as np
import pytest
import torch

from nemo_desta.evaluation.probe import NUM_FEATURES, NUM_MELS, linear_probe, probe_features


def tone(hz: float, secs: float = 0.5, gain: float = 0.3, seed: int = 0) -> torch.Tensor:
    time = torch.arange(int(16_000 * secs)) / 16_000
    noise = torch.from_numpy(np.random.default_rng(seed).normal(size=len(time))).float()
    return gain * (torch.sin(2 * torch.pi * hz * time) + 0.01 * noise)


def test_features_find_the_tone_in_its_band_and_in_its_third() -> None:
    clip = torch.cat([tone(300.0), tone(1000.0), tone(3000.0)])
    features = probe_features(clip).view(6, NUM_MELS)
    assert features.shape == (6, NUM_MELS) and NUM_FEATURES == 480 and features.dtype == torch.float32
    mels = torch.linspace(31.75, 2840.02, NUM_MELS + 2)[1:-1]  # 20 Hz and 8 kHz in mel
    centres = 700 * (10 ** (mels / 2595) - 1)
    peaks = centres[features[3:].argmax(1)]
    assert peaks.tolist() == pytest.approx([300, 1000, 3000], rel=0.06)


def test_normalised_features_ignore_the_level() -> None:
    loud, quiet = tone(500.0, gain=0.5), tone(500.0, gain=0.005)
    torch.testing.assert_close(
        probe_features(loud, normalize=True), probe_features(quiet, normalize=True), rtol=1e-3, atol=1e-3
    )
    means = probe_features(loud)[:NUM_MELS] - probe_features(quiet)[:NUM_MELS]
    torch.testing.assert_close(means, torch.full((NUM_MELS,), 2 * np.log(100.0).item()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("samples", [0, 1, 400, 1599])
def test_short_and_silent_clips_have_finite_features(samples: int) -> None:
    for normalize in (False, True):
        for clip in (torch.zeros(samples), tone(500.0)[:samples]):
            features = probe_features(clip, normalize=normalize)
            assert features.shape == (NUM_FEATURES,) and features.isfinite().all()


def test_probe_tells_rising_from_falling_tones_and_chance_from_nothing() -> None:
    def glide(rising: bool, seed: int) -> torch.Tensor:
        parts = [tone(hz + 10 * (seed % 7), 0.15, seed=seed) for hz in (400, 800, 1600)]
        return probe_features(torch.cat(parts if rising else parts[::-1]), normalize=True)

    labels = ["rising" if i % 2 else "falling" for i in range(40)]
    features = torch.stack([glide(label == "rising", i) for i, label in enumerate(labels)])
    assert linear_probe(features[:20], labels[:20], features[20:]) == labels[20:]
    still = torch.stack([probe_features(tone(500.0, seed=i)) for i in range(40)])
    hits = sum(p == r for p, r in zip(linear_probe(still[:20], labels[:20], still[20:]), labels[20:], strict=True))
    assert 3 < hits < 17
