"""Toy encoders for projector tests: shapes without a model, and made-up frames."""

import torch

from nemo_desta.perception.encoders import EncoderShape
from nemo_desta.types import EncoderOutput, FrameGrid

RATE = 16000
SAMPLES = [20_003, 16_000, 5_000, 1]  # of the clips of a batch
SMALL_QFORMER = {
    "num_queries": 3,
    "num_layers": 2,
    "num_heads": 2,
    "feed_forward_size": 16,
    "dropout": 0.0,
    "chunk_secs": 1,
}
SMALL_WINDOW_QFORMER = {"hidden_size": 8, "num_heads": 2, "feed_forward_size": 16, "dropout": 0.0}
CROSS = {"name": "cross_attention", "hidden_size": 8, "num_heads": 2, "feed_forward_size": 16}


def toy_encoder(width: int, layer_ids: tuple[int, ...], grid: FrameGrid) -> EncoderShape:
    return EncoderShape(width, layer_ids, num_layers=max(layer_ids), frame_grid=grid)


def toy_encoders(whisper_width: int = 12, beats_width: int = 8) -> dict[str, EncoderShape]:
    return {
        "whisper": toy_encoder(whisper_width, (1, 2, 4), FrameGrid(RATE, 320)),
        "beats": toy_encoder(beats_width, (3, 6), FrameGrid(RATE, 2560, frames_per_step=8, overlap=True)),
    }


def toy_features(encoders: dict[str, EncoderShape], samples: list[int], *, first_clip: int = 0, dtype=torch.float32):
    """Frames that depend on the clip's number only, NaN behind each clip's end."""
    features = {}
    for name, encoder in encoders.items():
        lens = [encoder.num_frames(n) for n in samples]
        layers = []
        for layer in encoder.layer_ids:
            frames = torch.full((len(samples), max(lens) + 2, encoder.hidden_size), float("nan"), dtype=dtype)
            for row, length in enumerate(lens):
                generator = torch.Generator().manual_seed(1000 * (first_clip + row) + 10 * layer + len(name))
                frames[row, :length] = torch.randn(length, encoder.hidden_size, generator=generator).to(dtype)
            layers.append(frames)
        features[name] = EncoderOutput(tuple(layers), torch.tensor(lens))
    return features


def run(projector, encoders, samples, **knobs):
    """Project toy clips of the given lengths -> (vectors, lens)."""
    features = toy_features(encoders, samples, **knobs)
    return projector(features, audio_lens=torch.tensor(samples), sampling_rate=RATE)


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every parameter a value that its start value (zero, one) would hide."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


def assert_batch_equals_alone(projector, encoders, samples):
    """A clip in a batch gives what it gives alone; counts are the promised ones; no NaN of the padding shows up.

    In float64, so that a leak cannot hide behind the rounding of matrix products of different shapes.
    """
    projector = projector.double()
    vectors, lens = run(projector, encoders, samples, dtype=torch.float64)
    assert lens.dtype == torch.int64
    assert lens.tolist() == [projector.num_tokens(n, RATE) for n in samples]
    assert vectors.shape == (len(samples), max(lens.tolist()), projector.output_size)
    for row, n in enumerate(samples):
        alone, alone_lens = run(projector, encoders, [n], first_clip=row, dtype=torch.float64)
        assert alone_lens.tolist() == [lens[row]]
        torch.testing.assert_close(vectors[row, : lens[row]], alone[0], atol=1e-9, rtol=1e-9)


def assert_every_gradient_is_finite(projector, encoders, samples):
    """Each parameter gets a gradient, finite in spite of NaN in the padding, and not zero throughout (except the bias
    of attention keys, which a softmax ignores)."""
    vectors, lens = run(projector, encoders, samples)
    valid = torch.arange(vectors.shape[1]) < lens[:, None]
    torch.manual_seed(0)
    vectors[valid].mul(torch.randn(int(lens.sum()), vectors.shape[2])).sum().backward()
    for name, parameter in projector.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert name.endswith("key.bias") or parameter.grad.abs().max() > 0, name
