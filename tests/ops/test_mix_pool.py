"""mix_pool's reference against one window and one frame at a time in float64, and its promises."""

import pytest
import torch

from nemo_desta.ops import mix_pool
from nemo_desta.ops.reference import NORM_EPS
from nemo_desta.types import WindowTable

B, T, C, N, M, K = 3, 21, 20, 3, 2, 5


def make_case(dtype=torch.float32, seed=0):
    """Ragged clips (21, 8 and 1 frames), overlapping windows, NaN in every frame behind a clip's end."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    layers = [normal(B, T, C).to(dtype) for _ in range(N)]
    for clip, frames in enumerate((21, 8, 1)):
        for layer in layers:
            layer[clip, frames:] = float("nan")
    windows = WindowTable(
        starts=torch.tensor([0, 4, 9, 16, T, T + 3, T + 7, 2 * T]),
        counts=torch.tensor([5, 5, 3, 5, 5, 4, 1, 1]),
        lens=torch.tensor([4, 3, 1]),
    )
    params = [normal(N).softmax(0), 1 + 0.1 * normal(C), normal(C), normal(M, C), normal(M, K)]
    return layers, params, windows


def slow_mix_pool(layers, params, windows, mode):
    """The formula of the docstring, frame by frame, in float64."""
    weights, g, b, query, bias = params
    flat = [layer.double().reshape(B * T, C) for layer in layers]
    out = []
    for start, count in zip(windows.starts.tolist(), windows.counts.tolist(), strict=True):
        frames = []
        for f in range(start, start + count):
            m = sum(w * layer[f] for w, layer in zip(weights, flat, strict=True))
            centred = m - m.mean()
            frames.append(centred / (centred.square().mean() + NORM_EPS).sqrt())
        x = torch.stack(frames)
        if mode == "stack":
            out.append(torch.cat([g * x + b, torch.zeros(K - count, C)]))
            continue
        rows = []
        for i in range(M):
            a = torch.softmax(torch.stack([(g * query[i] * xj).sum() / C**0.5 for xj in x]) + bias[i, :count], 0)
            rows.append(g * (a[:, None] * x).sum(0) + b)
        out.append(torch.stack(rows))
    return torch.stack(out)


def relative_rms(found, expected):
    return ((found.double() - expected).square().mean() / expected.square().mean()).sqrt().item()


@pytest.mark.parametrize("mode", ["attention", "stack"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 3e-3), (torch.float16, 4e-4)]
)
def test_mix_pool_equals_the_definition_and_keeps_the_layers_dtype(mode, dtype, tolerance):
    layers, params, windows = make_case(dtype)
    out = mix_pool(layers, *[p.float() for p in params], windows, mode=mode)
    expected = slow_mix_pool(layers, params, windows, mode)
    assert out.dtype == dtype and out.shape == expected.shape
    assert relative_rms(out, expected) < tolerance


@pytest.mark.parametrize("mode", ["attention", "stack"])
def test_gradients_equal_the_definition_and_no_nan_of_the_padding_leaks(mode):
    layers, params, windows = make_case()
    ours = [p.float().requires_grad_() for p in params]
    slow = [p.clone().requires_grad_() for p in params]
    weight = torch.randn(8, M if mode == "attention" else K, C, generator=torch.Generator().manual_seed(1))
    (mix_pool(layers, *ours, windows, mode=mode) * weight).sum().backward()
    (slow_mix_pool(layers, slow, windows, mode) * weight).sum().backward()
    for name, found, expected in zip(("weights", "g", "b", "query", "bias"), ours, slow, strict=True):
        if mode == "stack" and name in ("query", "bias"):
            assert found.grad is None
        else:
            assert relative_rms(found.grad, expected.grad) < 1e-5, name


@pytest.mark.parametrize("mode", ["attention", "stack"])
def test_gradcheck_in_float64(mode):
    generator = torch.Generator().manual_seed(2)
    shapes = [(1, 5, 3), (1, 5, 3), (2,), (3,), (3,), (2, 3), (2, 3)]
    inputs = [torch.randn(*s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    windows = WindowTable(torch.tensor([0, 2, 3]), torch.tensor([3, 1, 2]), torch.tensor([3]))

    def run(*args):
        return mix_pool(args[:2], *args[2:], windows, mode=mode)

    assert torch.autograd.gradcheck(run, inputs)


def test_zero_query_and_bias_give_the_mean_of_the_window():
    layers, (weights, g, b, query, bias), windows = make_case()
    stacked = mix_pool(layers, weights, g, b, None, bias, windows, mode="stack")
    pooled = mix_pool(layers, weights, g, b, query * 0, bias * 0, windows, mode="attention")
    expected = stacked.sum(1) / windows.counts[:, None]
    torch.testing.assert_close(pooled[:, 0], expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(pooled[:, 1], expected, atol=1e-6, rtol=1e-6)


def test_stack_without_position_bias_is_as_wide_as_the_longest_window():
    layers, (weights, g, b, _, _), windows = make_case()
    assert mix_pool(layers, weights, g, b, None, None, windows, mode="stack").shape == (8, 5, C)


def test_mixed_precision_of_the_caller_does_not_thin_the_sums():
    layers, params, windows = make_case()
    params = [p.float() for p in params]
    plain = mix_pool(layers, *params, windows, mode="attention")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mix_pool(layers, *params, windows, mode="attention"), plain)


def test_wrong_calls_are_named():
    layers, (weights, g, b, query, bias), windows = make_case()
    with pytest.raises(ValueError, match="'mean'"):
        mix_pool(layers, weights, g, b, query, bias, windows, mode="mean")
    with pytest.raises(ValueError, match="2 layers but 3 layer weights"):
        mix_pool(layers[:2], weights, g, b, query, bias, windows, mode="attention")
    with pytest.raises(ValueError, match="5 frames but position_bias is for 4"):
        mix_pool(layers, weights, g, b, query, bias[:, :4], windows, mode="attention")
