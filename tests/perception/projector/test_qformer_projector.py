"""The Q-Former against DeSTA2.5's own numbers, and what ours does beyond it."""

import pytest
import torch

from nemo_desta.perception.projector import QFormerProjector
from nemo_desta.perception.projector.released import from_desta
from nemo_desta.types import EncoderOutput, FrameGrid
from tests.perception.projector.recipe import load_arrays, load_weights
from tests.perception.projector.toys import (
    RATE,
    SAMPLES,
    SMALL_QFORMER,
    randomise,
    run,
    toy_encoder,
    toy_encoders,
    toy_features,
)


def original() -> QFormerProjector:
    """DeSTA2.5's connector at the fixture's size: 4 taps of 48 channels, windows of 6 s, 8 queries."""
    encoder = toy_encoder(48, (1, 2, 3, 4), FrameGrid(RATE, 320))
    projector = QFormerProjector(
        {"whisper": encoder}, 96, num_queries=8, num_layers=2, num_heads=4, chunk_secs=6, mask_padding=False
    )
    projector.load_state_dict(from_desta(load_weights("desta25_qformer", "connector")))
    return projector.eval()


def original_taps() -> list[torch.Tensor]:
    arrays = load_arrays("desta25_qformer", "forward")
    return [arrays[f"taps_{k}"] for k in range(4)]


def test_each_step_equals_desta25():
    expected, taps, branch = load_arrays("desta25_qformer", "forward"), original_taps(), original().branches["whisper"]
    for k in range(4):
        torch.testing.assert_close(branch.read(k, taps[k], None), expected[f"qformer_tap{k}"], atol=1e-5, rtol=0)
    torch.testing.assert_close(branch.layer_logits.softmax(-1), expected["softmax_layer_weights"], atol=1e-7, rtol=0)
    torch.testing.assert_close(branch.mix(taps, None), expected["mixed"], atol=1e-5, rtol=0)


def test_output_and_gradients_equal_desta25():
    expected, projector = load_arrays("desta25_qformer", "forward"), original()
    frames = EncoderOutput(tuple(original_taps()), torch.tensor([85, 300, 235, 30]))
    audio_lens = torch.tensor([27_200, 96_000, 75_200, 9_600])
    vectors, lens = projector({"whisper": frames}, audio_lens=audio_lens, sampling_rate=RATE)
    assert lens.tolist() == [8, 8, 8, 8]
    torch.testing.assert_close(vectors, expected["connector_out"], atol=1e-5, rtol=0)

    (vectors * expected["grad_connector_out"]).sum().backward()
    original_gradients = {name[6:]: array for name, array in expected.items() if name.startswith("grad__")}
    assert len(original_gradients) > 30
    ours = dict(projector.named_parameters())
    for name, gradient in from_desta(original_gradients).items():
        if name.endswith("key.bias"):  # zero but for rounding: a softmax ignores what all its scores share
            assert ours[name].grad.abs().max() < 1e-8, name
            continue
        error = (ours[name].grad - gradient).norm() / gradient.norm()
        assert error < 2e-5, f"{name}: {error}"


@pytest.mark.parametrize(
    ("width", "num_layers", "expected"),
    [pytest.param(768, 2, 22_251_776, id="desta2-small"), pytest.param(1280, 6, 131_540_224, id="desta25-large-v3")],
)
def test_parameter_counts_are_the_papers(width, num_layers, expected):
    encoder = toy_encoder(width, (8, 16, 24, 32), FrameGrid(RATE, 320))
    with torch.device("meta"):
        projector = QFormerProjector({"whisper": encoder}, 4096, num_layers=num_layers)
    assert sum(p.numel() for p in projector.parameters()) == expected


def test_long_clips_get_more_vectors():
    projector = QFormerProjector(toy_encoders(), 10, markers=True, **SMALL_QFORMER)
    assert [projector.num_tokens(n, RATE) for n in (0, 16_000, 16_001, 95 * 16_000)] == [5, 5, 8, 287]


def test_a_later_chunk_hears_only_its_own_seconds():
    encoders = {"whisper": toy_encoders()["whisper"]}
    projector = randomise(QFormerProjector(encoders, 10, **SMALL_QFORMER)).eval()
    features = toy_features(encoders, [40_000])
    before, _ = projector(features, audio_lens=torch.tensor([40_000]), sampling_rate=RATE)
    features["whisper"].layers[1][0, 50:100] += 1
    after, _ = projector(features, audio_lens=torch.tensor([40_000]), sampling_rate=RATE)
    assert [i for i in range(9) if not torch.equal(before[0, i], after[0, i])] == [3, 4, 5]


def test_dropout_is_only_for_training():
    encoders = toy_encoders()
    projector = QFormerProjector(encoders, 10, **(SMALL_QFORMER | {"dropout": 0.5}))
    assert not torch.equal(run(projector, encoders, SAMPLES[:1])[0], run(projector, encoders, SAMPLES[:1])[0])
    projector.eval()
    assert torch.equal(run(projector, encoders, SAMPLES[:1])[0], run(projector, encoders, SAMPLES[:1])[0])


def test_what_cannot_be_is_named():
    encoders = toy_encoders()
    with pytest.raises(ValueError, match="give num_heads"):
        QFormerProjector(encoders, 10)
    projector = QFormerProjector(encoders, 10, **(SMALL_QFORMER | {"mask_padding": False}))
    with pytest.raises(ValueError, match="'whisper' returns 53"):
        run(projector, encoders, [16_001])
    with pytest.raises(ValueError, match="'layer_typo' is no tensor"):
        from_desta({"layer_typo": torch.zeros(1)})
