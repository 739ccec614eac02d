"""Ways to compute `mix_pool`: what people write, what torch.compile makes of it, and ours. All in float32 inside.

Each is called as `nemo_desta.ops.reference.mix_pool` is.
"""

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from benchmarks.mix_pool_cases import Case, Inputs
from nemo_desta import ops
from nemo_desta.ops import reference
from nemo_desta.ops.windows import window_index
from nemo_desta.types import WindowTable

MixPool = Callable[..., torch.Tensor]
COMPILED = {"compile": "default", "compile-max-autotune": "max-autotune-no-cudagraphs"}
REFERENCES = ("eager-stacked", "eager-list", "compile")
VARIANTS = ("eager-stacked", "eager-list", *COMPILED, "ours")
#: Relative RMS against float64, of the output by dtype and of gradients of float32 parameters.
OUTPUT_TOLERANCE = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 1e-2}
GRADIENT_TOLERANCE = 1e-4


def variant(name: str) -> MixPool:
    """The function; torch.compile starts afresh each time, for one shape."""
    if name == "eager-stacked":
        return eager_stacked
    if name == "eager-list":
        return reference.mix_pool
    if name == "ours":
        return functools.partial(ops.mix_pool, kernel="triton")
    if name in COMPILED:
        torch._dynamo.reset()
        # backward is timed again and again on one graph, which may then not reuse the memory of what it saved
        torch._functorch.config.donated_buffer = False
        return torch.compile(reference.mix_pool, mode=COMPILED[name], dynamic=False)
    raise ValueError(f"variant is {name!r}; known are {', '.join(VARIANTS)}")


def eager_stacked(
    layers: Sequence[torch.Tensor],
    layer_weights: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    query: torch.Tensor,
    position_bias: torch.Tensor,
    windows: WindowTable,
    *,
    mode: str,
) -> torch.Tensor:
    """As one would write it down: stack, mix, normalise all frames, then gather the windows and pool."""
    index, valid = window_index(windows, position_bias.shape[1])
    mixed = (layer_weights[:, None, None, None] * torch.stack(tuple(layers))).sum(0)  # (N, B, T, C) -> (B, T, C)
    normed = F.layer_norm(mixed, mixed.shape[-1:], norm_weight, norm_bias, reference.NORM_EPS)
    frames = normed.flatten(0, 1)[index]  # (P, K, C)
    if mode == "stack":
        return (frames * valid[..., None]).to(layers[0].dtype)
    scores = torch.einsum("mc,pkc->pmk", query, frames - norm_bias) * frames.shape[-1] ** -0.5 + position_bias
    weights = scores.masked_fill(~valid[:, None], float("-inf")).softmax(-1)
    return (weights @ frames).to(layers[0].dtype)


def run(function: MixPool, inputs: Inputs, case: Case) -> torch.Tensor:
    """Forward."""
    return function(inputs.layers, *inputs.parameters.values(), inputs.windows, mode=case.mode)


def outputs(function: MixPool, inputs: Inputs, case: Case) -> dict[str, torch.Tensor]:
    """Output, and gradient of every parameter that takes part."""
    for parameter in inputs.parameters.values():
        parameter.grad = None
    out = run(function, inputs, case)
    out.backward(inputs.grad)
    found = {name: p.grad for name, p in inputs.parameters.items() if p.grad is not None}
    return {"output": out.detach(), **found}


def check(function: MixPool, inputs: Inputs, case: Case) -> float:
    """The largest error of output and gradients against float64, as a share of the allowed one.

    Raises AssertionError where an error is not below the allowed one.
    """
    exact = Inputs(
        [layer.double() for layer in inputs.layers],
        {name: p.detach().double().requires_grad_() for name, p in inputs.parameters.items()},
        inputs.windows,
        inputs.grad.double(),
    )
    expected, found = outputs(reference.mix_pool, exact, case), outputs(function, inputs, case)
    assert found.keys() == expected.keys(), f"{case}: gradients {sorted(found)}, expected {sorted(expected)}"
    worst = 0.0
    for name, value in expected.items():
        if name == "layer_weights" and case.N == 1:
            continue  # zero on paper: LayerNorm takes the only layer's weight out again
        error = ((found[name].double() - value).square().mean() / value.square().mean()).sqrt().item()
        allowed = OUTPUT_TOLERANCE[case.dtype] if name == "output" else GRADIENT_TOLERANCE
        assert error < allowed, f"{case}: {name} is off by {error:.1e} (relative RMS), allowed {allowed:.0e}"
        worst = max(worst, error / allowed)
    return worst


def saved_bytes(function: MixPool, inputs: Inputs, case: Case) -> int:
    """What forward keeps for backward beside its own inputs."""
    given = {id_of(t) for t in (*inputs.layers, *inputs.parameters.values(), *inputs.windows)}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if id_of(tensor) not in given:
            kept[id_of(tensor)] = tensor  # held, so that no other tensor gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run(function, inputs, case)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def id_of(tensor: torch.Tensor) -> int:
    """The same for all views of one memory."""
    return tensor.untyped_storage().data_ptr()
