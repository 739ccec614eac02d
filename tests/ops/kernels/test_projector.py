"""The window projector on the kernels: two encoders of different rates, ragged clips, overlapping windows."""

import pytest
import torch

from nemo_desta.perception.projector import WindowProjector
from nemo_desta.types import EncoderOutput
from tests.ops.mix_pool_cases import DEVICE
from tests.perception.projector.toys import RATE, randomise, toy_encoders, toy_features

SAMPLES = [3_603, 1]  # 2 windows and 1 at 5 per second, too


def made(encoders=None, **knobs):
    """A projector with random parameters, and what its encoders say."""
    encoders = encoders or toy_encoders()
    projector = randomise(WindowProjector(encoders, 10, num_queries=2, **knobs)).to(DEVICE)
    features = toy_features(encoders, SAMPLES)
    return projector, {
        name: EncoderOutput(tuple(layer.to(DEVICE) for layer in output.layers), output.lens.to(DEVICE))
        for name, output in features.items()
    }


def outcome(projector, features, kernel):
    for pool in projector.pools.values():
        pool.kernel = kernel
    projector.zero_grad()
    vectors, lens = projector(features, audio_lens=torch.tensor(SAMPLES, device=DEVICE), sampling_rate=RATE)
    valid = torch.arange(vectors.shape[1], device=DEVICE) < lens[:, None]
    (vectors[valid] * torch.linspace(-1, 1, vectors.shape[-1], device=DEVICE)).sum().backward()
    return vectors[valid].detach(), {name: p.grad.clone() for name, p in projector.named_parameters()}


@pytest.mark.parametrize("mode", ["attention", "stack"])
@pytest.mark.parametrize("rate", [6.25, 5])  # at 5, a BEATs step lies in two windows
def test_kernel_and_reference_give_the_same_vectors_and_gradients(mode, rate):
    projector, features = made(mode=mode, tokens_per_second=rate)
    expected, expected_grads = outcome(projector, features, "torch")
    found, grads = outcome(projector, features, "triton")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert grads.keys() == expected_grads.keys()
    for name, gradient in grads.items():
        torch.testing.assert_close(gradient, expected_grads[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("kernel", "names"),
    [
        ("triton", ("beats",)),
        pytest.param("torch", ("beats",), marks=pytest.mark.slow),
        pytest.param("triton", ("whisper", "beats"), marks=pytest.mark.slow),
        pytest.param("torch", ("whisper", "beats"), marks=pytest.mark.slow),
    ],
)
def test_the_whole_projector_compiles_to_one_graph(kernel, names):
    """Its two sizes depend on the data (windows in all, windows of the longest clip): Dynamo must be allowed that."""
    projector, features = made({name: toy_encoders()[name] for name in names})
    expected, expected_grads = outcome(projector, features, "torch")
    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        projector.compile(backend="aot_eager", fullgraph=True)
        found, grads = outcome(projector, features, kernel)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in grads.items():
        torch.testing.assert_close(gradient, expected_grads[name], rtol=1e-4, atol=1e-5, msg=name)
