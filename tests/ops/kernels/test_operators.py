"""The kernels as citizens of PyTorch: operator rules, compile, autocast, checkpointing, determinism, frozen layers."""

import functools

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from nemo_desta.ops import mix_pool
from nemo_desta.ops.kernels import launch, mix_stack
from nemo_desta.ops.kernels import mix_pool as pool
from tests.ops.mix_pool_cases import DEVICE, Case, make_inputs, output_grad, relative_rms, run_and_grad

kernel = functools.partial(mix_pool, kernel="triton")
CASES = [Case("attention", "fp32", 48, 3, 3, 2), Case("stack", "bf16", 48, 2, 3)]
by_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(scope="module")
def plain_run():
    """Output and gradients of a case, run once without anything around it."""

    @functools.cache
    def run(case):
        layers, parameters, windows = make_inputs(case)
        return run_and_grad(kernel, layers, parameters, windows, case.mode, output_grad(case))

    return run


@by_case
def test_the_operator_keeps_the_rules_of_torch_library(case):
    layers, parameters, windows = make_inputs(case)
    weights, gain, bias, query, position = (value.requires_grad_() for value in parameters.values())
    full = windows.counts == case.window_frames  # slots beyond a count are not set, and opcheck would compare them
    table = windows.starts[full], windows.counts[full]
    if case.mode == "attention":
        found = torch.library.opcheck(pool.pool_forward, (layers, weights, gain, bias, query, position, *table))
    else:
        arguments = (layers, weights, gain, bias, *table, case.window_frames)
        found = torch.library.opcheck(mix_stack.stack_forward, arguments)
    assert len(found) >= 4 and set(found.values()) == {"SUCCESS"}


@by_case
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_keeps_one_graph_and_the_numbers(case, backend, plain_run):
    layers, parameters, windows = make_inputs(case)
    grad = output_grad(case)
    expected, expected_grads = plain_run(case)
    torch._dynamo.reset()
    compiled = torch.compile(kernel, backend=backend, fullgraph=True)
    found, grads = run_and_grad(compiled, layers, parameters, windows, case.mode, grad)
    assert relative_rms(found, expected) < 1e-6
    for name, gradient in grads.items():
        assert relative_rms(gradient, expected_grads[name]) < 1e-6, name


@by_case
def test_autocast_changes_no_bit(case, plain_run):
    layers, parameters, windows = make_inputs(case)
    plain = plain_run(case)
    with torch.autocast(DEVICE, torch.bfloat16):
        mixed = run_and_grad(kernel, layers, parameters, windows, case.mode, output_grad(case))
    assert torch.equal(plain[0], mixed[0])
    assert all(torch.equal(plain[1][name], mixed[1][name]) for name in plain[1])


@by_case
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_no_bit(case, reentrant, plain_run):
    def recomputed(layers, *parameters, mode):
        *parameters, windows = parameters
        return checkpoint(lambda *p: kernel(layers, *p, windows, mode=mode), *parameters, use_reentrant=reentrant)

    layers, parameters, windows = make_inputs(case)
    plain = plain_run(case)
    again = run_and_grad(recomputed, layers, parameters, windows, case.mode, output_grad(case))
    assert torch.equal(plain[0], again[0])
    assert all(torch.equal(plain[1][name], again[1][name]) for name in plain[1])


@by_case
def test_two_runs_give_the_same_bits_and_the_number_of_programs_only_rounding(case, monkeypatch, plain_run):
    layers, parameters, windows = make_inputs(case)
    first = plain_run(case)
    again = run_and_grad(kernel, layers, parameters, windows, case.mode, output_grad(case))
    assert torch.equal(first[0], again[0])
    assert all(torch.equal(first[1][name], again[1][name]) for name in first[1])
    monkeypatch.setattr(launch, "CPU_PROGRAMS", 1)
    monkeypatch.setattr(launch, "WARPS_PER_SM", 0)
    alone = run_and_grad(kernel, layers, parameters, windows, case.mode, output_grad(case))
    assert torch.equal(first[0], alone[0])
    for name, gradient in first[1].items():
        assert relative_rms(gradient, alone[1][name]) < 2e-6, name


class OneProgramShort:
    """A kernel whose last program is never started."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return self.kernel[(grid[0] - 1, *grid[1:])]


@pytest.mark.parametrize(
    ("case", "module", "name"),
    [
        (CASES[0], pool, "pool_forward_kernel"),
        (CASES[0], pool, "pool_backward_rows_kernel"),
        (CASES[0], pool, "pool_backward_kernel"),
        (CASES[1], mix_stack, "stack_forward_kernel"),
        (CASES[1], mix_stack, "stack_backward_kernel"),
    ],
)
def test_an_element_that_no_program_writes_is_seen_as_nan(case, module, name, monkeypatch):
    """These tests must be able to fail: outputs and buffers start as NaN, not as what an earlier test left there."""
    layers, parameters, windows = make_inputs(case)
    monkeypatch.setattr(module, name, OneProgramShort(getattr(module, name)))
    found, grads = run_and_grad(kernel, layers, parameters, windows, case.mode, output_grad(case))
    assert found.isnan().any() == ("forward" in name)
    assert any(gradient.isnan().any() for gradient in grads.values())


@pytest.mark.parametrize("empty", [torch.empty, torch.zeros(1).new_empty, lambda n: torch.empty_like(torch.zeros(n))])
def test_new_memory_is_nan(empty):
    assert empty(3).isnan().all()


@by_case
def test_every_candidate_launch_gives_the_same_numbers(case, monkeypatch, plain_run):
    layers, parameters, windows = make_inputs(case)
    grad = output_grad(case)
    expected, expected_grads = plain_run(case)
    module = pool if case.mode == "attention" else mix_stack
    for num_warps in (2, 4, 8):
        wide = [launch.Launch(case.width, num_warps)]
        monkeypatch.setattr(module, "forward_launches", lambda *_, wide=wide: wide)
        monkeypatch.setattr(module, "backward_launches", lambda *_, wide=wide: wide)
        found, grads = run_and_grad(kernel, layers, parameters, windows, case.mode, grad)
        assert relative_rms(found, expected) < 2e-6
        for name, gradient in grads.items():
            assert relative_rms(gradient, expected_grads[name]) < 2e-6, (num_warps, name)


@by_case
def test_trained_layers_are_refused_unless_nobody_asks_for_a_gradient(case):
    layers, parameters, windows = make_inputs(case)
    layers[0] = layers[0].clone().requires_grad_()
    with pytest.raises(RuntimeError, match="layers are trained"):
        kernel(layers, *parameters.values(), windows, mode=case.mode)
    with torch.no_grad():
        kernel(layers, *parameters.values(), windows, mode=case.mode)


@by_case
def test_what_is_kept_for_backward_is_a_few_numbers_per_frame_and_the_pooled_vectors(case):
    layers, parameters, windows = make_inputs(case)
    states = {layer.untyped_storage().data_ptr() for layer in layers}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in states:
            kept[tensor.untyped_storage().data_ptr()] = tensor.nbytes
        return tensor

    leaves = [value.requires_grad_() for value in parameters.values()]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kernel(layers, *leaves, windows, mode=case.mode)
    P, K, M, C, N = len(windows.starts), case.window_frames, case.num_queries, case.width, case.num_layers
    table = 2 * 8 * P
    if case.mode == "attention":
        learned = 4 * (N + C + M * C + M * K)
        assert sum(kept.values()) == table + learned + 4 * (P * M * C + P * M * K + P * M + 2 * P * K)
    else:
        assert sum(kept.values()) == table + 4 * (N + C) + 4 * (2 * P * K)


def test_the_tuner_takes_the_fastest_once_and_only_when_asked(monkeypatch):
    launches = [launch.Launch(48, warps) for warps in (1, 2, 4)]
    measured = []

    def measure(run):
        run()
        measured.append(ran[-1])
        return {1: 3.0, 2: 1.0, 4: 2.0}[ran[-1]]

    ran: list[int] = []
    tuner = launch.Tuner(measure)
    monkeypatch.delenv("NEMO_DESTA_TUNE", raising=False)
    assert tuner.choose(("shape",), launches, lambda one: ran.append(one.num_warps)).num_warps == 1
    assert not ran
    monkeypatch.setenv("NEMO_DESTA_TUNE", "1")
    for _ in range(2):
        assert tuner.choose(("shape",), launches, lambda one: ran.append(one.num_warps)).num_warps == 2
    assert measured == [1, 2, 4]
