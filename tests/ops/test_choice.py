"""Which implementation mix_pool takes, and what it says when it cannot take the one asked for."""

import logging

import pytest
import torch

from nemo_desta import ops
from nemo_desta.perception.projector import WindowProjector
from tests.ops.mix_pool_cases import Case, make_inputs
from tests.perception.projector.toys import toy_encoders

LAYERS = [torch.zeros(1, 4, 8)]


@pytest.fixture(autouse=True)
def no_choice_from_outside(monkeypatch):
    monkeypatch.delenv("NEMO_DESTA_KERNEL", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_auto_on_a_cpu_is_pytorch_and_says_so_once(caplog):
    ops._log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="nemo_desta.ops"):
        assert ops.choose_kernel("auto", LAYERS) == "torch"
        assert ops.choose_kernel("auto", LAYERS) == "torch"
    assert len(caplog.records) == 1 and "PyTorch" in caplog.text and "on cpu" in caplog.text


def test_triton_on_a_cpu_is_refused_with_the_reason():
    with pytest.raises(RuntimeError, match="layers are on cpu"):
        ops.choose_kernel("triton", LAYERS)


def test_the_environment_overrules_the_argument(monkeypatch):
    monkeypatch.setenv("NEMO_DESTA_KERNEL", "torch")
    assert ops.choose_kernel("triton", LAYERS) == "torch"
    monkeypatch.setenv("NEMO_DESTA_KERNEL", "triton")
    with pytest.raises(RuntimeError, match="layers are on cpu"):
        ops.choose_kernel("torch", LAYERS)


def test_unknown_kernels_are_named_by_where_they_come_from(monkeypatch):
    with pytest.raises(ValueError, match="kernel is 'cuda'.*auto, triton, torch"):
        ops.choose_kernel("cuda", LAYERS)
    with pytest.raises(ValueError, match="kernel is 'cuda'"):
        WindowProjector(toy_encoders(), 10, kernel="cuda")
    monkeypatch.setenv("NEMO_DESTA_KERNEL", "Triton")
    with pytest.raises(ValueError, match="NEMO_DESTA_KERNEL=Triton"):
        ops.choose_kernel("auto", LAYERS)


def test_where_triton_could_run_auto_still_leaves_it_other_dtypes_and_trained_layers(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert ops.choose_kernel("auto", LAYERS) == "triton"
    assert ops.choose_kernel("auto", [LAYERS[0].double()]) == "torch"
    trained = [LAYERS[0].clone().requires_grad_()]
    assert ops.choose_kernel("auto", trained) == "torch"
    with torch.no_grad():
        assert ops.choose_kernel("auto", trained) == "triton"
    monkeypatch.setattr(ops, "_triton_installed", lambda: False)
    assert ops.choose_kernel("auto", LAYERS) == "torch"
    with pytest.raises(RuntimeError, match="pip install triton"):
        ops.choose_kernel("triton", LAYERS)


def test_trained_layers_get_their_gradient_from_the_reference():
    layers, parameters, windows = make_inputs(Case("attention", "fp32", 48, 2, 3, 1))
    layers = [layer.clone().requires_grad_() for layer in layers]
    ops.mix_pool(layers, *parameters.values(), windows, mode="attention").sum().backward()
    assert all(layer.grad.abs().sum() > 0 for layer in layers)
