"""Every projector behind real (tiny) Whisper and BEATs encoders: exact lengths, and no clip knows its neighbours."""

import pytest
import torch

from nemo_desta.perception.encoders import BeatsEncoder, WhisperEncoder
from nemo_desta.perception.projector import PROJECTORS, build_projector
from nemo_desta.testing.perception import tiny_beats, tiny_whisper

SAMPLES = [20_321, 9_000, 400, 1]
KNOBS = {
    "window": {"tokens_per_second": 5},
    "qformer": {"num_queries": 3, "num_layers": 1, "num_heads": 4, "feed_forward_size": 16, "chunk_secs": 1},
    "conv": {"adapter": {"hidden_size": 8, "norm": "batch"}},
    "window_qformer": {"hidden_size": 8, "num_heads": 2, "feed_forward_size": 16},
}
KNOBS = {name: {**knobs, "markers": True} for name, knobs in KNOBS.items()}
KNOBS["ensemble"] = {"members": {name: {"name": name, **KNOBS[name]} for name in ("window", "conv")}}


@pytest.fixture(scope="module")
def heard(tmp_path_factory):
    """Encoders, and what they say about all clips together and about each alone."""
    folder = tmp_path_factory.mktemp("encoders")
    encoders = {
        "whisper": WhisperEncoder.from_pretrained(tiny_whisper(folder / "whisper", window_secs=1.0), layer_ids=[1, 3]),
        "beats": BeatsEncoder.from_checkpoint(tiny_beats(folder / "beats.pt", hidden_size=32)),
    }
    audio = 0.1 * torch.randn(len(SAMPLES), max(SAMPLES), generator=torch.Generator().manual_seed(0))
    batches = [(audio, SAMPLES)] + [(audio[row : row + 1, :n], [n]) for row, n in enumerate(SAMPLES)]
    features = [
        {name: encoder(clips, torch.tensor(lens)) for name, encoder in encoders.items()} for clips, lens in batches
    ]
    return encoders, features


@pytest.mark.parametrize("name", sorted(PROJECTORS))
def test_lengths_are_exact_and_a_clip_in_a_batch_equals_the_clip_alone(heard, name):
    encoders, (together, *alone) = heard
    torch.manual_seed(0)
    projector = build_projector(name, encoders, 12, **KNOBS[name], output_rms=0.1).eval()
    vectors, lens = projector(together, audio_lens=torch.tensor(SAMPLES), sampling_rate=16_000)
    assert lens.tolist() == [projector.num_tokens(n, 16_000) for n in SAMPLES]
    for row, n in enumerate(SAMPLES):
        single, _ = projector(alone[row], audio_lens=torch.tensor([n]), sampling_rate=16_000)
        torch.testing.assert_close(vectors[row, : lens[row]], single[0], atol=2e-4, rtol=0)


def test_a_projector_never_owns_the_encoders(heard):
    for name in PROJECTORS:
        projector = build_projector(name, heard[0], 12, **KNOBS[name])
        owned = {id(p) for encoder in heard[0].values() for p in encoder.parameters()}
        assert not owned & {id(p) for p in projector.parameters()}
        assert not any("encoder" in key for key in projector.state_dict())
