"""SALMONN's window-level Q-Former against its own numbers, and ours beyond it."""

import pytest
import torch

from nemo_desta.perception.projector import WindowQFormerProjector
from nemo_desta.perception.projector.released import from_salmonn
from nemo_desta.types import EncoderOutput, FrameGrid
from tests.perception.projector.recipe import load_arrays, load_weights
from tests.perception.projector.toys import (
    RATE,
    SMALL_WINDOW_QFORMER,
    randomise,
    run,
    toy_encoder,
    toy_encoders,
    toy_features,
)


@pytest.mark.parametrize(
    ("case", "num_queries", "window_secs", "stride_secs"),
    [
        ("default_audio_shorter", 1, 0.333333, 0.333333),
        ("default_audio_longer", 1, 0.333333, 0.333333),
        ("two_queries_overlap", 2, 0.333333, 0.2),
        ("whole_clip_4_queries", 4, None, None),
    ],
)
def test_output_equals_salmonn(case, num_queries, window_secs, stride_secs):
    grid = FrameGrid(RATE, 320)
    encoders = {"whisper": toy_encoder(40, (1,), grid), "beats": toy_encoder(24, (1,), grid)}
    projector = WindowQFormerProjector(
        encoders,
        56,
        window_secs=window_secs,
        stride_secs=stride_secs,
        num_queries=num_queries,
        hidden_size=48,
        num_heads=4,
        feed_forward_size=96,
        drop_last=True,
    ).eval()
    projector.load_state_dict(from_salmonn(load_weights("salmonn", f"weights_{num_queries}q")))
    expected = load_arrays("salmonn", case)
    features = {
        name: EncoderOutput((expected[f"{name}_frames"],), torch.full((2,), expected[f"{name}_frames"].shape[1]))
        for name in encoders
    }
    samples = 320 * max(output.lens[0] for output in features.values())
    vectors, lens = projector(features, audio_lens=torch.full((2,), samples), sampling_rate=RATE)
    assert lens.tolist() == [expected["output"].shape[1]] * 2 == [projector.num_tokens(int(samples), RATE)] * 2
    torch.testing.assert_close(vectors, expected["output"], atol=1.5e-5, rtol=0)


def test_the_last_frames_are_read_unless_they_are_to_be_dropped():
    encoders = {"whisper": toy_encoders()["whisper"]}
    features = toy_features(encoders, [320 * 20])
    changed = toy_features(encoders, [320 * 20])
    changed["whisper"].layers[0][0, 19] += 1
    lens = {"audio_lens": torch.tensor([320 * 20]), "sampling_rate": RATE}
    for drop_last, windows in ((False, 2), (True, 1)):
        projector = randomise(WindowQFormerProjector(encoders, 10, drop_last=drop_last, **SMALL_WINDOW_QFORMER)).eval()
        before, after = projector(features, **lens)[0], projector(changed, **lens)[0]
        assert before.shape[1] == windows
        assert torch.equal(before[:, 0], after[:, 0])
        assert torch.equal(before, after) == drop_last


def test_a_second_gives_three_vectors_and_the_started_fourth():
    projector = WindowQFormerProjector(toy_encoders(), 10, **SMALL_WINDOW_QFORMER)
    assert [projector.num_tokens(n, RATE) for n in (1, 16_000, 480_000)] == [1, 4, 89]
    assert (
        WindowQFormerProjector(toy_encoders(), 10, drop_last=True, **SMALL_WINDOW_QFORMER).num_tokens(480_000, RATE)
        == 88
    )


def test_what_cannot_be_is_named():
    encoders = toy_encoders() | {"slow": toy_encoder(4, (1,), FrameGrid(24_000, 960))}
    with pytest.raises(ValueError, match="'slow': 25.0"):
        WindowQFormerProjector(encoders, 10, **SMALL_WINDOW_QFORMER)
    with pytest.raises(ValueError, match="windows of 5 frames every 10"):
        WindowQFormerProjector(toy_encoders(), 10, window_secs=0.1, stride_secs=0.2, **SMALL_WINDOW_QFORMER)
    assert run(WindowQFormerProjector(toy_encoders(), 10, **SMALL_WINDOW_QFORMER), toy_encoders(), [1])[0].shape == (
        1,
        1,
        10,
    )
