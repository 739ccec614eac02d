"""Stand-in encoders: what ships loads in the real classes; the training script runs and its parts behave."""

import functools
import json

import numpy as np
import pytest
import torch

from nemo_desta.demo import encoders
from nemo_desta.demo.corpus import build_corpus
from nemo_desta.demo.encoder_data import (
    HEADS,
    Clip,
    augment,
    collate,
    labels_of,
    load_clips,
    mask_features,
    training_batches,
)
from nemo_desta.demo.llm import sha256
from nemo_desta.perception.encoders import BeatsEncoder, WhisperEncoder


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return build_corpus(tmp_path_factory.mktemp("corpus"), seed=2, clips=60)


def test_shipped_encoders_load_in_the_real_classes_and_match_their_checksums():
    record = json.loads((encoders.ASSETS / "training.json").read_text())
    for name, checksum in record["sha256"].items():
        assert sha256(encoders.ASSETS / name) == checksum
        assert (encoders.ASSETS / name).stat().st_size < 4_000_000
    audio, lens = torch.randn(2, 16000) * 0.05, torch.tensor([16000, 9000])
    for encoder in (
        WhisperEncoder.from_pretrained(str(encoders.ASSETS / "whisper")),
        BeatsEncoder.from_checkpoint(encoders.ASSETS / "beats.pt"),
    ):
        layers, frames = encoder(audio, lens)
        assert len(layers) == encoders.LAYERS and layers[-1].shape[-1] == encoders.WIDTH
        assert frames.tolist() == [encoder.num_frames(n) for n in lens.tolist()]
        assert all(torch.isfinite(layer).all() for layer in layers)


def test_shipped_encoders_saw_only_audio_that_was_made():
    record = json.loads((encoders.ASSETS / "training.json").read_text())
    assert {source.split("/")[0] for source in record["clips"]} == {"demo"}


def test_training_writes_checkpoints_that_score_as_reported(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "training_batches", functools.partial(training_batches, words=12, others=6))
    record = encoders.train(manifest, tmp_path, steps=2)
    assert record["steps"] == 2 and record["clips"]["demo/word"] > 5
    assert {"demo/word: gender", "demo/word: word"} <= set(record["valid_accuracy"])
    again = encoders.train(manifest, tmp_path / "again", steps=2)
    assert again["sha256"] == record["sha256"]


def test_short_windows_share_the_parameters_and_agree_with_the_long_one():
    student = encoders.WhisperStudent().eval()
    short = student._windows[encoders.SHORT_WINDOWS[0]]
    assert short.layers is student.encoder.layers
    rows = encoders.SHORT_WINDOWS[0]
    assert torch.equal(short.embed_positions.weight, student.encoder.embed_positions.weight[:rows])


def test_labels_follow_the_world():
    row = {"domain": "speech", "transcript": "stop", "attributes": {"gender": "female"}}
    labels = dict(zip(HEADS, labels_of(row), strict=True))
    assert HEADS["word"][labels["word"]] == "stop" and HEADS["gender"][labels["gender"]] == "female"
    assert labels["emotion"] == labels["sound_class"] == labels["sentence"] == -1


def test_splits_are_kept_apart(manifest):
    counts = {split: len(load_clips([manifest.name], manifest.parent, split)) for split in ("train", "valid", "test")}
    assert sum(counts.values()) == 60 and counts["train"] > counts["test"] > 0


def test_augmented_takes_differ_stay_finite_and_within_the_limit():
    clip = Clip((3000 * np.sin(np.arange(9000) / 9)).astype(np.int16), (-1,) * len(HEADS), "x/word", True)
    rng = np.random.default_rng(0)
    takes = [augment(clip, rng, 0.5) for _ in range(20)]
    assert all(np.isfinite(take).all() and 0 < len(take) <= 8000 for take in takes)
    assert len({take.tobytes() for take in takes}) == 20
    batch = collate([(take, clip.labels) for take in takes])
    rms = torch.tensor([batch.audio[i, :n].square().mean().sqrt() for i, n in enumerate(batch.audio_lens)])
    assert torch.allclose(20 * rms.log10(), torch.tensor(-25.0), atol=0.1)


def test_masks_leave_most_of_the_features():
    features = torch.randn(8, 80, 96)
    masked = mask_features(features, np.random.default_rng(1))
    assert 0.5 < (masked == features).float().mean() < 1.0


def test_window_means_ignore_frames_beyond_the_length():
    frames = torch.ones(2, 12, 3)
    frames[1, 9:] = float("inf")
    frames = torch.where(torch.isinf(frames), torch.tensor(99.0), frames)
    windows, valid = encoders._windows(frames, torch.tensor([12, 9]))
    assert windows.shape == (2, 2, 3) and torch.equal(windows, torch.ones_like(windows))
    assert valid.tolist() == [[1, 1], [1, 1]]
