"""Kernels against the reference in float64: the output and every gradient, in every dtype."""

import functools

import pytest
import torch

from nemo_desta.ops import mix_pool
from tests.ops.mix_pool_cases import (
    DEVICE,
    Case,
    all_cases,
    few_cases,
    in_float64,
    make_inputs,
    output_grad,
    relative_rms,
    run_and_grad,
)

kernel = functools.partial(mix_pool, kernel="triton")

#: Relative RMS. Half precision outputs are rounded once, at the end; gradients of parameters stay in float32.
OUTPUT_TOLERANCE = {"fp32": 2e-6, "fp16": 2e-3, "bf16": 1e-2}
GRADIENT_TOLERANCE = {"fp32": 2e-6, "fp16": 1e-5, "bf16": 1e-5}


FEW = few_cases()
#: The interpreter takes seconds for a large shape: there `make test` runs every pair of knobs, `make test-slow` all.
CASES = [pytest.param(case, marks=[] if case in FEW or DEVICE == "cuda" else pytest.mark.slow) for case in all_cases()]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_gradients_equal_float64(case):
    layers, parameters, windows = make_inputs(case)
    grad = output_grad(case)
    expected, expected_grads = in_float64(layers, parameters, windows, case.mode, grad)
    found, grads = run_and_grad(kernel, layers, parameters, windows, case.mode, grad)

    assert found.dtype == layers[0].dtype
    assert relative_rms(found, expected) < OUTPUT_TOLERANCE[case.dtype]
    assert grads.keys() == expected_grads.keys()
    for name, gradient in grads.items():
        assert gradient.dtype == torch.float32
        if vanishes(name, case):
            # Exactly zero on paper, so only rounding is left: compare with the size of what cancels.
            assert gradient.abs().max() < 1e-6 * grad.float().abs().sum(), name
        else:
            assert relative_rms(gradient, expected_grads[name]) < GRADIENT_TOLERANCE[case.dtype], name


def vanishes(name: str, case: Case) -> bool:
    """One layer's weight scales what LayerNorm scales back; a single frame's share is 1 whatever its score."""
    if name == "layer_weights":
        return case.num_layers == 1
    return name in ("query", "position_bias") and case.window_frames == 1


@pytest.mark.parametrize("mode", ["attention", "stack"])
def test_a_batch_without_windows_has_an_empty_output_and_zero_gradients(mode):
    layers, parameters, windows = make_inputs(Case(mode, "fp32", 48, 2, 4, 2))
    empty = type(windows)(windows.starts[:0], windows.counts[:0], windows.lens * 0)
    out, grads = run_and_grad(
        kernel, layers, parameters, empty, mode, torch.zeros(0, 2 if mode == "attention" else 4, 48, device=DEVICE)
    )
    assert out.shape[0] == 0
    assert all(not gradient.any() for gradient in grads.values())


def test_zero_queries_give_the_exact_mean():
    layers, parameters, windows = make_inputs(Case("attention", "fp32", 48, 3, 5, 2))
    parameters["query"], parameters["position_bias"] = parameters["query"] * 0, parameters["position_bias"] * 0
    weights, gain, bias, *_ = parameters.values()
    frames = mix_pool(layers, weights, gain, bias, None, parameters["position_bias"], windows, mode="stack")
    pooled = kernel(layers, *parameters.values(), windows, mode="attention")
    means = frames.sum(1) / windows.counts[:, None]
    torch.testing.assert_close(pooled, means[:, None].expand_as(pooled), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("width", [20, 100, 384, 1000, 1288])
def test_any_width_will_do(width):
    case = Case("attention", "fp32", width, 2, 3, 2)
    layers, parameters, windows = make_inputs(case)
    parameters["query"] *= 0.1  # loud channels saturate the softmax, whose gradient is then mere rounding
    grad = output_grad(case)
    expected, expected_grads = in_float64(layers, parameters, windows, case.mode, grad)
    found, grads = run_and_grad(kernel, layers, parameters, windows, case.mode, grad)
    assert relative_rms(found, expected) < 2e-6
    for name, gradient in grads.items():
        assert relative_rms(gradient, expected_grads[name]) < 2e-6, name


def test_layers_in_any_layout_give_the_same_bits():
    layers, parameters, windows = make_inputs(Case("attention", "fp32", 48, 3, 4, 1))
    cut = kernel(layers, *parameters.values(), windows, mode="attention")
    whole = kernel([layer.contiguous() for layer in layers], *parameters.values(), windows, mode="attention")
    turned = [layer.transpose(1, 2).contiguous().transpose(1, 2) for layer in layers]
    assert torch.equal(cut, whole)
    assert torch.equal(cut, kernel(turned, *parameters.values(), windows, mode="attention"))
    assert torch.equal(cut, kernel([layers[0], *turned[1:]], *parameters.values(), windows, mode="attention"))
